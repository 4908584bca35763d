"""Signals that end a job at any moment: one sentence, a status that says which, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Runs a child process and holds a folder, as preprocessing does with Spark's JVM and its staging.
_JOB = """
import shutil, subprocess, sys, time
from functools import partial
from pathlib import Path
from pipeline.undo import end_on_signals, handler_kept, undone_by
end_on_signals()
folder = Path(sys.argv[1])
class Swallowing:
    def __del__(self):
        time.sleep(60)
with undone_by(partial(shutil.rmtree, folder)), handler_kept():
    folder.mkdir()
    child = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE)
    print(child.pid, flush=True)
    if sys.argv[2] == "waits":
        child.wait()
    elif sys.argv[2] == "in a finalizer":
        Swallowing()
    else:
        try:
            time.sleep(60)
        finally:
            time.sleep(60)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
@pytest.mark.parametrize("where", ["waits", "in a finalizer", "in a try"])
def test_a_signal_undoes_what_was_begun_ends_the_children_and_is_said_in_one_sentence(
    tmp_path: Path, number: int, name: str, status: int, where: str
) -> None:
    command = [sys.executable, "-c", _JOB, str(tmp_path / "begun"), where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout
        child = int(job.stdout.readline())
        assert (tmp_path / "begun").exists()
        job.send_signal(number)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == status
    assert errors == f"stopped by {name}; what was not finished is removed: start the job again.\n"
    assert not (tmp_path / "begun").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    endless = (
        "import time\nfrom pipeline.undo import end_on_signals, undone_by\nend_on_signals()\n"
        "with undone_by(lambda: time.sleep(600)):\n    print(flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout
        assert job.stderr
        job.stdout.readline()
        job.send_signal(signal.SIGINT)
        job.stderr.readline()
        started = time.monotonic()
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=60) == -signal.SIGINT
        assert time.monotonic() - started < 10


def test_a_handler_that_a_library_sets_in_between_is_replaced(tmp_path: Path) -> None:
    program = """
import signal
from pipeline.undo import end_on_signals, handler_kept
def theirs(*_):
    raise KeyboardInterrupt
end_on_signals()
ours = signal.getsignal(signal.SIGINT)
with handler_kept():
    signal.signal(signal.SIGINT, theirs)
assert signal.getsignal(signal.SIGINT) is ours
with handler_kept():
    signal.signal(signal.SIGINT, theirs)
    signal.raise_signal(signal.SIGINT)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (130, 1), result.stderr
