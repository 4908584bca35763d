"""Where numba keeps its compiled kernels: a directory of the user's own, so that workers share what one compiled.

Import this module before numba: `import pipeline.numba_cache  # noqa: F401`. A compiled kernel is machine code that is
loaded without a question, so a directory that another user may write to is refused. And numba asks only whether the file
of a kernel has changed, not the files of what is inlined into it: so each state of our kernels has a directory below.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

import xxhash

from pipeline.manifest import InputError

VARIABLE = "NUMBA_CACHE_DIR"


def own_directory(environment: MutableMapping[str, str]) -> Path:
    """The cache directory, made with mode 0700 if need be, and named in `environment` for numba and for child processes.

    It is named by the content of our kernels, below $NUMBA_CACHE_DIR, or $XDG_CACHE_HOME/entirespace/numba, or
    ~/.cache/entirespace/numba. Raises InputError where it cannot be made, belongs to another user, or may be written by
    others.
    """
    state = kernels_xxh3(Path(__file__).parent.parent)
    if chosen := environment.get(VARIABLE):
        root = Path(chosen).parent if Path(chosen).name == state else Path(chosen)  # a parent process has been here
    else:
        home = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(home) / "entirespace" / "numba"
    for path in (root, root / state):
        _make_own(path)
    environment[VARIABLE] = str(root / state)
    return root / state


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


def kernels_xxh3(root: Path) -> str:
    """The hash of every source file below `root` that has kernels."""
    content = xxhash.xxh3_64()
    for path in sorted(path for package in ("pipeline", "training") for path in (root / package).glob("*.py")):
        if b"njit" in (text := path.read_bytes()):
            content.update(text)
    return content.hexdigest()


own_directory(os.environ)
