"""An error of a file system as one sentence: the place, what is wrong, and what helps there."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Turn an error of the file system into the sentence about `where`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{where} cannot be written ({reason_of(error)}); {_remedy(where)}") from error


@contextmanager
def reading(location: str) -> Iterator[None]:
    """The same for reading; a missing file stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{location} cannot be read ({reason_of(error)}); {_remedy(location)}") from error


def reason_of(error: BaseException) -> str:
    """Say in one line what an error of a file system says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _remedy(location: str) -> str:
    if "s3://" in location:
        return "check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID or AWS_PROFILE)."
    if "://" in location:
        return "check the address and its credentials."
    return "make room there, or choose another out."


class InputError(ValueError):
    """A mistake of the user or of the input: one sentence with the value, the rule and the remedy.

    Entry points print it without a traceback and exit with status 2.
    """
