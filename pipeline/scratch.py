"""The scratch folder of one process: for Spark's shuffle, what its workers read, and copies of runs at an address.

It lies below TMPDIR, with mode 0700 whatever the umask is, because shuffled rows are users' data. It is removed when the
process ends. After a kill, the next process that makes one removes it: a lock on the folder ends with its process.
Java's own temporary files stay where Java puts them: sockets are among them, whose paths may have 107 bytes.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pipeline.errors import InputError, writing
from pipeline.undo import at_signals

_SCRATCH_FOLDER = "entirespace-scratch"
_open: dict[Path, tuple[Path, int]] = {}  # the root → the folder of this process, and its locked descriptor


def scratch_folder() -> Path:
    """Return the scratch folder of this process, made at the first call; remove those that killed processes left.

    Raises InputError if it cannot be made, or if another user could put files there.
    """
    root = Path(tempfile.gettempdir()) / f"{_SCRATCH_FOLDER}-{os.geteuid()}"
    if root not in _open or not _open[root][0].is_dir():
        with writing(f"TMPDIR={root.parent}", "set TMPDIR to a folder that can be written"):
            _make_private(root)
            with _alone_in(root):  # else another process could remove the folder before it is locked
                _remove_left(root)
                folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{os.getpid()}-"))
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                with suppress(OSError):  # where files cannot be locked, nothing is removed either
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
        _open[root] = folder, descriptor
        remove = partial(_remove_if_own, folder, os.getpid())
        atexit.register(remove)
        at_signals(remove)
    return _open[root][0]


def _make_private(root: Path) -> None:
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    status = root.lstat()
    if status.st_uid != os.geteuid() or (status.st_mode & 0o170077) != 0o040000:
        raise InputError(
            f"Scratch files cannot be kept in {root}: it is not a folder that you alone may use; remove it, or set TMPDIR "
            "to a folder of your own."
        )


@contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Keep other processes from making or removing folders in `root` during the block."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_left(root: Path) -> None:
    """Remove the folders that no process has locked."""
    for left in root.iterdir():
        with suppress(OSError):  # it is in use, or another process was faster
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def _remove_if_own(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked process inherits the exit handlers
        shutil.rmtree(folder, ignore_errors=True)
