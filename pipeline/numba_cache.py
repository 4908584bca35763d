"""Where numba keeps its compiled kernels: a directory of the user's own, so that workers share what one compiled.

Import this module before numba: `import pipeline.numba_cache  # noqa: F401`. A compiled kernel is machine code that is
loaded without a question, so a directory that another user may write to is refused.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

from pipeline.manifest import InputError

VARIABLE = "NUMBA_CACHE_DIR"


def own_directory(environment: MutableMapping[str, str]) -> Path:
    """The cache directory, made with mode 0700 if need be, and named in `environment` for numba and for child processes.

    $NUMBA_CACHE_DIR wins, then $XDG_CACHE_HOME/entirespace/numba, then ~/.cache/entirespace/numba. Raises InputError
    where it cannot be made, belongs to another user, or may be written by others.
    """
    if chosen := environment.get(VARIABLE):
        path = Path(chosen)
    else:
        home = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(home) / "entirespace" / "numba"
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
    environment[VARIABLE] = str(path)
    return path


own_directory(os.environ)
