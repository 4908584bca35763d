import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest

from pipeline.errors import InputError
from pipeline.file_lock import Holder, LockHeld, exclusive_lock, parse_holder
from pipeline.storage.local_store import LocalStore
from pipeline.storage.lock import dataset_lock
from training.run.run_folder import lock_run

_HOLD = """
import sys; from pathlib import Path; from pipeline.file_lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1])) as lock:
    lock.sign(); print(flush=True); input()
"""


@contextmanager
def holder_of(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock on `path` until it is told to end."""
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process


def test_a_lock_of_another_process_is_refused_by_name_and_free_when_that_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "_lock"
    with holder_of(path) as process:
        with pytest.raises(LockHeld) as refused, exclusive_lock(path):
            pass
        assert refused.value.holder is not None
        assert (refused.value.holder.pid, refused.value.holder.host) == (process.pid, socket.gethostname())
        message = f"is being written by process {process.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=message), dataset_lock(LocalStore(tmp_path)):
            pass
        process.send_signal(signal.SIGKILL)
    with exclusive_lock(path) as lock:
        found = lock.holder()
        assert lock.is_exclusive
        assert found is not None
        assert (found.pid, found.is_here) == (process.pid, True), "whoever comes next can say who died"


def test_a_run_that_another_process_trains_is_refused_by_name(tmp_path: Path) -> None:
    with holder_of(tmp_path / ".lock") as process:
        with (
            pytest.raises(InputError, match=rf"is being trained already, by process {process.pid} on"),
            lock_run(tmp_path),
        ):
            pass
        process.communicate(b"\n")
    with lock_run(tmp_path):
        holder = parse_holder((tmp_path / ".lock").read_bytes())
        assert holder is not None
        assert holder.pid == os.getpid()


def test_a_dataset_left_by_a_killed_job_is_taken_over_with_a_message_and_its_lock_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder_of(tmp_path / "_lock") as process:
        process.send_signal(signal.SIGKILL)
    with dataset_lock(LocalStore(tmp_path)):
        assert f"process {process.pid} ended without releasing it" in capsys.readouterr().err
    assert not (tmp_path / "_lock").exists()


def test_holders_that_remove_the_file_never_overlap(tmp_path: Path) -> None:
    """Eight processes take the lock 25 times each; the counter that they raise without a lock of its own loses none."""
    script = """
import sys; from pathlib import Path; from pipeline.file_lock import LockHeld, exclusive_lock
path, count = Path(sys.argv[1]) / "_lock", Path(sys.argv[1]) / "count"
done = 0
while done < 25:
    try:
        with exclusive_lock(path):
            count.write_text(str(int(count.read_text()) + 1)); path.unlink(); done += 1
    except LockHeld:
        pass
"""
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait() for process in processes] == [0] * 8
    assert (tmp_path / "count").read_text() == "200"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_used_unlocked_and_a_dataset_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with lock_run(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()
    with dataset_lock(LocalStore(tmp_path)):
        assert "is not locked (its file system has no locks)" in capsys.readouterr().err


def test_what_is_no_holder_names_nobody() -> None:
    mine = Holder("a", 1, "noon")
    assert parse_holder(mine.to_json()) == mine
    for content in (b"", b"{}", b"[1]", b"null", b"process 3 on x\n", json.dumps({"host": "a", "pid": "?"}).encode()):
        assert parse_holder(content) is None
