"""Where files are: a path or an address, opened as a pyarrow file system."""

import os

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.errors import InputError


def is_address(location: str) -> bool:
    """Tell an address (scheme://…) from a path of this host."""
    return "://" in location


def open_location(location: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path in it for a local path or a URI (s3://, hdfs://, file://)."""
    text = os.fspath(location)
    if is_address(text):
        try:
            return pafs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{text} cannot be opened ({error}); give a local path or an s3:// or hdfs:// address."
            ) from error
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))


def refuse_address(key: str, location: str) -> None:
    """Raise InputError where the setting `key`, of a job that writes directories alone, is an address."""
    if is_address(location):
        raise InputError(f"{key}={location} is an address, and this job writes to directories alone; give a path.")
