"""InputError, the error message for users, and how errors of file systems become one.

A message names the place, the reason and the remedy. `printable` makes text of the input safe to show.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

import pyarrow as pa

#: Unicode categories that change what a terminal or page shows instead of being shown: control (ESC), format (bidi
#: overrides, zero width), surrogate, line and paragraph separator.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Escape every character of `text` that a terminal or page would act on rather than show: line feeds, ESC, bidi."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(letter) if category(letter) in _HIDDEN else letter for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Raise InputError about `where` for an error of the file system."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{where} cannot be written ({reason_of(error)}); {_advice_for(where)}") from error


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
        raise InputError(f"{location} cannot be read ({reason_of(error)}); {_advice_for(location)}") from error


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in one line: the system's text if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _advice_for(location: str) -> str:
    if "s3://" in location:
        return "check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID or AWS_PROFILE)."
    if "://" in location:
        return "check the address and its credentials."
    return "make room there, or choose another out."


class InputError(ValueError):
    """A mistake of the user or of the input: its message has the value, the rule and the remedy.

    Entry points print it without a traceback and exit with status 2.
    """
