"""Files that another file names: a manifest its data and vocabularies, a checkpoint.json its tensors.

A name is input. It is relative and leads to a regular file inside the folder of the file that names it, also behind
links; the file has the size and the checksum that stand beside its name.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.atomic_files import xxh3_of
from pipeline.errors import READING_ERRORS, InputError, printable, reason_of, remedy_for_reading
from pipeline.locations import open_location


class FileStamp(NamedTuple):
    """What changes when a file is written again; an object store tells it without opening the object."""

    bytes: int
    mtime_ns: int


def inner_name(name: object, named_by: str, remedy: str) -> str:
    """Return `name` in its plain form. Raises InputError unless it is a relative path that stays in its folder."""
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath()
    if not path.parts or path.is_absolute() or ".." in path.parts or printable(str(path)) != str(path):
        raise InputError(
            f"{named_by} names the file {printable(repr(name))}, which leaves the folder of {PurePosixPath(named_by).name} "
            f"or is no name; only relative paths inside it are read: {remedy}"
        )
    return str(path)


@dataclass(frozen=True)
class NamedFiles:
    """The files below a folder that `named_by` names.

    Each method raises InputError, with `remedy`, for a name that leaves the folder, and for a file that is missing, is
    not regular or cannot be read.
    """

    filesystem: pafs.FileSystem
    root: str
    named_by: str  # the path or name of the file with the names, for messages
    remedy: str  # the end of every message
    # The device and inode of local files that were found inside the folder: following every folder's links takes 80 µs.
    _inside: set[tuple[int, int]] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def below(cls, location: str | os.PathLike[str], named_by: str, remedy: str) -> "NamedFiles":
        """Open the folder `location`: a path or an address."""
        filesystem, root = open_location(location)
        return cls(filesystem, root.rstrip("/"), named_by, remedy)

    def stamp(self, name: str) -> FileStamp:
        """Return the size and modification time of a regular file."""
        path = self._path(name)
        with self.readable(name):
            return self._local_stamp(path) if self._is_local else self._stored_stamp(path)

    def open(self, name: str) -> pa.NativeFile:
        """Open a regular file for reading at any place; it is never memory-mapped."""
        self.stamp(name)  # before: opening a FIFO would wait for a writer without an end
        with self.readable(name):
            return self.filesystem.open_input_file(self._path(name))

    @contextmanager
    def readable(self, name: str) -> Iterator[None]:
        """Raise InputError that names the file for what the file system, Arrow or Parquet raise in the block."""
        try:
            yield
        except FileNotFoundError as error:
            raise InputError(f"{name} is missing, though {self.named_by} names it; {self.remedy}") from error
        except READING_ERRORS as error:
            remedy = f"{remedy_for_reading(error, self.remedy.rstrip('.'))}."
            raise InputError(f"{name} cannot be read ({reason_of(error)}); {remedy}") from error

    def check_size(self, name: str, num_bytes: int) -> FileStamp:
        """Raise InputError unless the file has `num_bytes`; return its stamp."""
        found = self.stamp(name)
        if found.bytes != num_bytes:
            raise InputError(f"{name} has {found.bytes} bytes where {self.named_by} says {num_bytes}; {self.remedy}")
        return found

    def check_content(self, name: str, xxh3: str) -> None:
        """Read the file to its end. Raise InputError unless its checksum is `xxh3`."""
        with self.open(name) as stream, self.readable(name):
            found = xxh3_of(stream)
        self.compare_xxh3(name, found, xxh3)

    def compare_xxh3(self, name: str, found: str, xxh3: str) -> None:
        """Raise InputError unless the checksum `found` of the file's bytes is `xxh3`."""
        if found != xxh3:
            raise InputError(
                f"{name} has the checksum {found} where {self.named_by} says {xxh3}: its bytes have changed since it was "
                f"written; {self.remedy}"
            )

    @property
    def _is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def _path(self, name: str) -> str:
        return f"{self.root}/{inner_name(name, self.named_by, self.remedy)}"

    def _local_stamp(self, path: str) -> FileStamp:
        found = os.lstat(path)  # of a link itself, which is followed each time
        if (found.st_dev, found.st_ino) not in self._inside:
            real, root = os.path.realpath(path), os.path.realpath(self.root)
            if os.path.commonpath([real, root]) != root:
                raise OSError(f"a link leads out of the folder, to {printable(real)}")
            found = os.stat(real)
            self._inside.add((found.st_dev, found.st_ino))
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a regular file")
        return FileStamp(found.st_size, found.st_mtime_ns)

    def _stored_stamp(self, path: str) -> FileStamp:
        info = self.filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(path)
        if info.type != pafs.FileType.File:
            raise OSError("it is not a file")
        return FileStamp(info.size, info.mtime_ns)
