"""Nobody gets in: what a run on this host listens on, knocked on while it trains."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sockets import knock, listeners_of, process_tree
from tiny_dataset import write_tiny_dataset

from training.checkpoint.files import find_newest
from training.run.interrupts import EXIT_REQUEUE, REQUEUE

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
#: The environment under which torchrun opens no port on one host, as docs/security.md has it.
SAFE_TORCHRUN = dict(
    pair.split("=", 1)
    for line in re.findall(r"^    export (.+)$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    for pair in line.split()
)


class Code:
    """An object that runs code where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ports") / "data"
    write_tiny_dataset(folder, num_contexts=150)
    return folder


def start(launcher: list[str], data: Path, out: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start an endless run, and return when it has saved a checkpoint."""
    command = [sys.executable, *launcher, f"data={data}", f"out={out}", "epochs=1000000", "plan.batch_size=32"]
    command += ["model.towers.hidden=[8]", "checkpoint.every_steps=5", "validation.split=null"]
    with out.with_suffix(".stderr").open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=stderr, stderr=stderr, text=True
        )
    wait_for_checkpoint_after(-1, out, process)
    return process


def wait_for_checkpoint_after(step: int, out: Path, process: "subprocess.Popen[str]") -> int:
    """Wait until the run has saved a checkpoint after `step`; return its step."""
    deadline_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        found = find_newest(out, lambda line: None) if out.exists() else None
        newest = int(found.path.name.removeprefix("step-")) if found else -1
        if newest > step:
            return newest
        time.sleep(0.1)
    raise AssertionError(out.with_suffix(".stderr").read_text())


def end(process: "subprocess.Popen[str]", number: int, to: int) -> int:
    """Send signal `number` to the process `to`; return the status of `process`, and see that nothing is left of it."""
    ranks = process_tree(process.pid)
    os.kill(to, number)
    status = process.wait(PATIENCE_S)
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    return status


LAUNCHERS = {
    "ranks=2": (["-m", "jobs.train", "ranks=2"], {}),
    "torchrun": (["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "jobs.train"], SAFE_TORCHRUN),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_nothing_listens_beyond_loopback_and_a_stranger_who_knocks_changes_nothing(
    launcher: str, data: Path, tmp_path: Path
) -> None:
    command, environment = LAUNCHERS[launcher]
    out, proof = tmp_path / "run", tmp_path / "proof"
    process = start(command, data, out, **environment)
    try:
        listeners = listeners_of(process.pid)
        assert len({listener.pid for listener in listeners}) == 2, "gloo of two ranks"
        assert all(listener.is_loopback for listener in listeners), listeners
        code = pickle.dumps(Code(proof))
        for listener in listeners:
            for garbage in (b"", os.urandom(4096), b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", code, bytes(8) + code):
                knock(listener, garbage)
        saved = wait_for_checkpoint_after(-1, out, process)
        wait_for_checkpoint_after(saved, out, process)
        status = end(process, signal.SIGTERM, to=process.pid)
    finally:
        process.kill()
    assert not proof.exists()
    assert (out / REQUEUE).exists()
    stderr = out.with_suffix(".stderr").read_text()
    assert "warning: torchrun" not in stderr
    if launcher == "ranks=2":  # torchrun has a status and a traceback of its own
        assert status == EXIT_REQUEUE
        assert "is stopped and saved after step" in stderr.splitlines()[-1]
        assert "Traceback" not in stderr


def test_a_rank_that_is_killed_before_it_joins_is_named_too(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.train", "ranks=2", f"data={data}", f"out={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(ranks := process_tree(process.pid)[1:]) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(ranks[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGKILL
    assert re.search(rf"error: Rank 1 \(process {ranks[1]}\) was ended by SIGKILL", stderr.splitlines()[-1]), stderr
    assert "Traceback" not in stderr


def test_a_killed_rank_ends_the_others_and_is_named_last(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(["-m", "jobs.train", "ranks=2"], data, out)
    try:
        victim = process_tree(process.pid)[2]
        status = end(process, signal.SIGKILL, to=victim)
    finally:
        process.kill()
    stderr = out.with_suffix(".stderr").read_text()
    assert status == 128 + signal.SIGKILL
    assert re.search(rf"Rank [01] \(process {victim}\) was ended by SIGKILL", stderr.splitlines()[-1]), stderr
    assert max(map(ord, stderr)) < 1 << 16, "gloo's own text has an emoji"
    assert "Traceback" not in stderr
    assert "gloo" not in stderr
