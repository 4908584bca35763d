"""One process at a time: an exclusive lock on a file that names its holder. filelock does the locking.

    with exclusive_lock(path) as lock:     raises LockHeld(holder) while another process has it
        lock.holder()                      who signed the file last, and did not remove it
        lock.sign()                        write this process's name into it

The lock ends with its process. The file stays, unless the holder removes it inside the block.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

#: What systems answer that cannot lock a file at all (some network file systems).
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
# A holder that removes its file just before we lock it leaves us a lock without a name; filelock then tries again.
_PATIENCE_S = 0.1


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as it has written itself into the file."""

    host: str
    pid: int
    time: str  # UTC, when it took the lock

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.time}"

    def to_json(self) -> bytes:
        """Return the content of the lock file."""
        return json.dumps(asdict(self)).encode()

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this host, so that its lock would have ended with it."""
        return self.host == socket.gethostname()


@dataclass(frozen=True)
class LockFile:
    """A lock that this process holds."""

    path: Path
    is_exclusive: bool  # False where the file system has no locks

    def holder(self) -> Holder | None:
        """Read who has signed the file last."""
        return parse_holder(_content(self.path))

    def sign(self) -> None:
        """Write this process's name into the file."""
        self.path.write_bytes(this_process().to_json())


class LockHeld(Exception):
    """Another process holds the lock. `holder` is None where it has not signed the file yet."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(str(holder or "another process"))
        self.holder = holder


@contextmanager
def exclusive_lock(path: Path) -> Iterator[LockFile]:
    """Hold the lock on `path` for the length of the block; make the file where there is none.

    Raises LockHeld where another holder, of this process or another, has it. Where the file system has no locks
    the block runs all the same, with `is_exclusive=False`.
    """
    # Not the soft lock that filelock would fall back to: that one outlives a process that is killed.
    lock = FileLock(path, timeout=_PATIENCE_S, poll_interval=_PATIENCE_S / 5, fallback_to_soft=False)
    is_exclusive = True
    try:
        lock.acquire()
    except Timeout:
        raise LockHeld(parse_holder(_content(path))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        is_exclusive = False
    try:
        yield LockFile(path, is_exclusive)
    finally:
        lock.release()


def this_process() -> Holder:
    """Name this process as a holder."""
    return Holder(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def parse_holder(content: bytes) -> Holder | None:
    """Parse what `Holder.to_json` wrote; None for anything else, such as a file that is not written yet."""
    try:
        found = json.loads(content)
        return Holder(str(found["host"]), int(found["pid"]), str(found["time"]))
    except (ValueError, KeyError, TypeError):
        return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
