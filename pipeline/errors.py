"""InputError, the error message for users, and how errors of file systems become one.

A message names the place, the reason and the remedy, which depends on the reason: a full disk, a limit of open files and
memory are faults of the machine, never of the file. `printable` makes text of the input safe to show.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

#: What file systems and Arrow raise for a file that cannot be read or holds what it may not: a footer that is no UTF-8, …
READING_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError, OverflowError, MemoryError)
_MOST_LETTERS = 1200  # of an error message
_SHOWN_AS: dict[str, str] = {}  # folder → the address that it stands in for


def printable(text: str) -> str:
    """Escape every character of `text` that a terminal or page acts on rather than shows: line feeds, ESC, bidi marks."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def show_as(folder: str, address: str) -> None:
    """Let messages name `address` wherever they would name `folder`, this process's copy of it."""
    _SHOWN_AS[folder] = address


def with_addresses(text: str) -> str:
    """Name addresses in place of the folders that stand in for them."""
    for folder, address in _SHOWN_AS.items():
        text = text.replace(folder, address)
    return text


@contextmanager
def writing(where: str, instead: str = "choose another out") -> Iterator[None]:
    """Raise InputError about `where` for an error of the file system; `instead` is what the user may do if it stays."""
    try:
        yield
    except OSError as error:
        raise not_written(where, error, instead) from error


def not_written(where: str, error: OSError, instead: str) -> "InputError":
    """Return the InputError for a place that cannot be written."""
    remedy = _WRITING_REMEDIES.get(error.errno or 0)
    if "://" in where:
        remedy = remedy or _advice_for_address(where)
    elif error.errno not in _PROCESS_LIMITS:
        remedy = f"{remedy}, or {instead}" if remedy else instead
    return InputError(f"{where} cannot be written ({reason_of(error)}); {remedy}.")


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Raise InputError about `location` for an error of the file system or of Arrow.

    A missing file stays FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        remedy = _advice_for_address(location) or remedy_for_reading(error, "repair or replace it")
        raise InputError(f"{location} cannot be read ({reason_of(error)}); {remedy}.") from error


def remedy_for_reading(error: BaseException, otherwise: str) -> str:
    """Return what helps where a file cannot be read: `otherwise` unless the cause lies outside the file."""
    number = error.errno if isinstance(error, OSError) else None
    return _READING_REMEDIES.get(number or 0, otherwise)


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in one printable line: the system's text if there is one."""
    if isinstance(error, OSError) and error.errno and error.strerror:
        return os.strerror(error.errno)  # Arrow's text repeats the path
    first_line = str(error).strip().split("\n")[0]
    return printable(first_line) or type(error).__name__


def _advice_for_address(location: str) -> str:
    if "s3://" in location:
        return "check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID or AWS_PROFILE)"
    return "check the address and its credentials" if "://" in location else ""


#: Reasons that are limits of the process: another place would not help.
_PROCESS_LIMITS = {
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096)",
    errno.ENFILE: "the machine has too many open files: end other processes, or raise fs.file-max",
    errno.ENOMEM: "give the job more memory",
}
_WRITING_REMEDIES = _PROCESS_LIMITS | {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EROFS: "mount it for writing",
    errno.ELOOP: "remove the circle of links",
    errno.ENOTDIR: "remove the file that is in the place of a directory",
    errno.EEXIST: "remove the file that is in the place of a directory",
}
_READING_REMEDIES = _PROCESS_LIMITS | {
    errno.EACCES: "give this user the right to read it",
    errno.EPERM: "give this user the right to read it",
    errno.ELOOP: "remove the circle of links",
}


class InputError(ValueError):
    """A mistake of the user or of the input: its message has the value, the rule and the remedy.

    Entry points print it without a traceback and exit with status 2. A message of more than 1,200 letters, which quotes
    such a value, loses its middle: the place stands at its begin and the remedy at its end.
    """

    def __init__(self, message: str) -> None:
        message = with_addresses(message)
        if len(message) > _MOST_LETTERS:
            message = f"{message[: _MOST_LETTERS // 2]} … {message[-_MOST_LETTERS // 2 :]}"
        super().__init__(message)


class TryAgainError(InputError):
    """A fault of the hosts or the network between them, which the same command may get over: the exit status is 75.

    A scheduler starts such a job again, and none that ended with 2.
    """
