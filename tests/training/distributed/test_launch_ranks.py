"""Which of several failed ranks is named."""

import signal

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from training.distributed.launch_ranks import _status_of

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
