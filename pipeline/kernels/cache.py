"""The directory of numba's compiled kernels, one a user, so that workers share what one compiled.

`kernels.jit` imports this module before numba. A compiled kernel is machine code that numba loads unchecked, so a
directory that another user may write to is refused. numba looks only at the file of a kernel, not at the files of
what is inlined into it. So each state of our kernels has a directory of its own, which is removed when nobody has
used it for 30 days.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from pipeline.atomic_files import probe_room
from pipeline.errors import InputError, writing

VARIABLE = "NUMBA_CACHE_DIR"
_UNUSED_S = 30 * 24 * 3600.0
_STATE = re.compile(r"[0-9a-f]{16}\Z")
_locks: dict[Path, int] = {}  # directory that this process uses → descriptor with a shared lock


def own_directory(environment: MutableMapping[str, str]) -> Path:
    """Make the cache directory, with mode 0700, and set it in `environment` for numba and for child processes; return it.

    Its name is the hash of our kernels. It lies below $NUMBA_CACHE_DIR, $XDG_CACHE_HOME/entirespace/numba or
    ~/.cache/entirespace/numba. Raises InputError if it cannot be made, belongs to another user, or others may write
    to it.
    """
    state = kernels_xxh3(Path(__file__).parents[2])
    if chosen := environment.get(VARIABLE):
        root = Path(chosen).parent if Path(chosen).name == state else Path(chosen)  # set by a parent process
    else:
        root = user_cache(environment) / "numba"
    _make_own(root)
    is_new = not (root / state).exists()
    _lock_shared(root / state)
    if is_new:  # our kernels have changed, so older directories may be stale
        _remove_unused(root)
    environment[VARIABLE] = str(root / state)
    with refused_cache(root / state):  # full or read-only: numba would say so later, in the middle of a task
        probe_room(root / state)
    return root / state


def user_cache(environment: Mapping[str, str]) -> Path:
    """Return the folder of this user's caches: $XDG_CACHE_HOME/entirespace or ~/.cache/entirespace."""
    if chosen := environment.get("XDG_CACHE_HOME"):
        return Path(chosen) / "entirespace"
    try:
        return Path.home() / ".cache" / "entirespace"
    except RuntimeError as error:
        raise InputError(
            f"HOME is not set and user id {os.geteuid()} has no home directory; set XDG_CACHE_HOME to a folder of your "
            "own, where compiled code is kept."
        ) from error


@contextmanager
def refused_cache(path: Path) -> Iterator[None]:
    """Raise InputError where the file system refuses to keep compiled kernels in `path`."""
    with writing(f"{VARIABLE}={path}, where compiled kernels are kept,", f"set {VARIABLE} to a directory of your own"):
        yield


def _make_own(path: Path) -> None:
    remedy = f"set {VARIABLE} to a directory of your own with mode 0700."
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise InputError(f"{VARIABLE}={path} cannot be used ({error.strerror}); {remedy}") from error
    if status.st_uid != os.geteuid():
        raise InputError(f"{VARIABLE}={path} belongs to user id {status.st_uid}, who could plant code there; {remedy}")
    if status.st_mode & 0o022:
        raise InputError(f"{VARIABLE}={path} may be written by other users, who could plant code there; {remedy}")


def _lock_shared(path: Path) -> None:
    """Make the directory, and keep a shared lock on it until this process and all that it forks have ended."""
    while path not in _locks or not _is_at(path, _locks[path]):
        _make_own(path)
        with suppress(FileNotFoundError):  # it was just being removed: make it again
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            # flock, and not filelock as elsewhere: the lock is shared, it is on a directory, and a forked worker
            # inherits it. filelock 4.2 locks files exclusively (FileLock) or by SQLite (ReadWriteLock), in one process.
            with suppress(OSError):  # where files cannot be locked, nothing is removed either
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            _locks[path] = descriptor
    with suppress(OSError):  # read-only: `own_directory` says so
        os.utime(path)


def _remove_unused(root: Path) -> None:
    """Remove the directories of other states that no process has locked, and that none has opened for 30 days."""
    for path in root.iterdir():
        if not _STATE.match(path.name) or path in _locks:
            continue
        with suppress(OSError):  # it is in use, or another process was faster
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(descriptor).st_mtime > _UNUSED_S:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def kernels_xxh3(root: Path) -> str:
    """Hash every source file below `root` that has kernels."""
    content = xxhash.xxh3_64()
    for path in sorted(path for package in ("pipeline", "training") for path in (root / package).rglob("*.py")):
        if b"njit" in (text := path.read_bytes()):
            content.update(text)
    return content.hexdigest()


own_directory(os.environ)
