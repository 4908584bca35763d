"""Which of several failed ranks is named, and how torchrun ends on one of several hosts."""

import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from training.distributed.launch_ranks import _status_of, run_torchrun

KILLED, TERMINATED, REFUSED = -signal.SIGKILL, -signal.SIGTERM, 2


def failures(*ends: tuple[int, int, int]) -> ChildFailedError:
    """Make the agent's error of (rank, exit status, second) in the order in which it found them."""
    found = {}
    for rank, status, second in ends:
        found[rank] = ProcessFailure(rank, 1000 + rank, status, "")
        found[rank].timestamp = second
    return ChildFailedError("jobs.train", found)


@pytest.mark.parametrize(
    ("ends", "status", "named"),
    [
        ([(0, REFUSED, 7), (1, KILLED, 7)], 137, "Rank 1 (process 1001) was ended by SIGKILL"),  # one look found both
        (
            [(0, REFUSED, 7), (1, KILLED, 8)],
            137,
            "Rank 1 (process 1001) was ended by SIGKILL",
        ),  # a second began between
        ([(1, KILLED, 7), (0, REFUSED, 7)], 137, "Rank 1 (process 1001) was ended by SIGKILL"),
        ([(0, REFUSED, 7), (1, TERMINATED, 7)], 2, ""),  # the agent ended rank 1
        ([(0, REFUSED, 7), (1, KILLED, 37)], 2, ""),  # the agent killed it when its patience was over
        ([(1, TERMINATED, 7), (0, REFUSED, 8)], 143, "Rank 1 (process 1001) was ended by SIGTERM"),
        ([(0, 75, 7), (1, 75, 7)], 75, ""),
    ],
)
def test_the_rank_that_brought_the_others_down_is_named(
    ends: list[tuple[int, int, int]], status: int, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _status_of(failures(*ends), received=[]) == status
    stderr = capsys.readouterr().err
    assert named in stderr if named else not stderr


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("pass", 0),
        ("sys.exit(2)", 2),
        ("sys.exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else time.sleep(60)", 137),
    ],
)
def test_torchrun_ends_with_the_status_of_its_ranks(body: str, status: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"import os, signal, sys, time\n{body}\n")
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={tmp_path / 'store'}", "--rdzv-conf=store_type=file"]
    assert run_torchrun(["--nnodes=1", "--nproc-per-node=2", "--max-restarts=0", *meeting, str(program)]) == status


def test_a_host_that_does_not_find_the_first_says_so_and_may_try_again(capsys: pytest.CaptureFixture[str]) -> None:
    meeting = ["--rdzv-backend=static", "--rdzv-endpoint=127.0.0.1:9", "--rdzv-conf=timeout=1", "--node-rank=1"]
    assert run_torchrun(["--nnodes=2", "--nproc-per-node=1", *meeting, "--no-python", "true"]) == 75
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: The hosts did not meet at 127.0.0.1:9")
    assert "run the same command again" in error
