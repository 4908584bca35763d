"""How raw files are listed and opened: by this host's own calls, by pyarrow behind an address, or by Spark's Java side.

An address is a path, or scheme://… . What Spark opens (`HadoopFiles`) only the driver can open so: the tasks of that
reader are given lines (hadoop_lines.py).
"""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from pyarrow import fs as pafs

from pipeline.locations import open_location

_READ_AHEAD_BYTES = 4 << 20  # of a remote file: one request


@dataclass(frozen=True)
class Entry:
    """A file or a directory."""

    name: str  # the last part of its address
    address: str
    bytes: int
    is_directory: bool


class Files(Protocol):
    """What finding and reading a raw log needs of a file system."""

    def entry(self, directory: str, name: str = "") -> Entry | None:
        """A directory itself, or what has a name in it; None where there is none."""

    def children(self, directory: str) -> list[Entry]:
        """What is in a directory, in the order of the names."""

    def open(self, address: str) -> BinaryIO:
        """A file's bytes, with seek."""


class LocalFiles:
    """Paths of this host."""

    def entry(self, directory: str, name: str = "") -> Entry | None:
        """A path below a directory."""
        path = Path(directory).expanduser() / name
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(path.name, str(path.resolve()), found.st_size, stat.S_ISDIR(found.st_mode))

    def children(self, directory: str) -> list[Entry]:
        """The entries of a directory."""
        found = [self.entry(directory, name) for name in sorted(os.listdir(directory))]
        return [entry for entry in found if entry is not None]

    def open(self, address: str) -> BinaryIO:
        """Open it."""
        return open(address, "rb")


class ArrowFiles:
    """Addresses that pyarrow opens: s3://, gs://, abfs://, hdfs://."""

    def entry(self, directory: str, name: str = "") -> Entry | None:
        """An address below a directory's."""
        address = f"{directory.rstrip('/')}/{name}".rstrip("/")
        filesystem, path = open_location(address)
        info = filesystem.get_file_info(path.rstrip("/"))
        if info.type == pafs.FileType.NotFound:
            return None
        return Entry(info.base_name, address, info.size or 0, info.type == pafs.FileType.Directory)

    def children(self, directory: str) -> list[Entry]:
        """The entries of a directory."""
        filesystem, path = open_location(directory)
        infos = sorted(filesystem.get_file_info(pafs.FileSelector(path.rstrip("/"))), key=lambda info: info.base_name)
        return [
            Entry(
                info.base_name, f"{directory.rstrip('/')}/{info.base_name}", info.size or 0,
                info.type == pafs.FileType.Directory,
            )
            for info in infos
            if info.base_name
        ]  # fmt: skip

    def open(self, address: str) -> BinaryIO:
        """Open it, reading ahead: every read of a bare remote file is a request of its own."""
        filesystem, path = open_location(address)
        return cast(BinaryIO, io.BufferedReader(filesystem.open_input_file(path), _READ_AHEAD_BYTES))


class HadoopFiles:
    """Addresses that Spark's Java side opens, on the driver and through py4j: for heads, and for small files."""

    def entry(self, directory: str, name: str = "") -> Entry | None:
        """An address below a directory's."""
        path = self._path(f"{directory.rstrip('/')}/{name}" if name else directory)
        filesystem = self._filesystem(path)
        return _entry_of(filesystem.getFileStatus(path)) if filesystem.exists(path) else None

    def children(self, directory: str) -> list[Entry]:
        """The entries of a directory."""
        path = self._path(directory)
        found = [_entry_of(status) for status in self._filesystem(path).listStatus(path)]
        return sorted(found, key=lambda entry: entry.name)

    def open(self, address: str) -> BinaryIO:
        """Open it."""
        path = self._path(address)
        return cast(BinaryIO, io.BufferedReader(_JavaFile(self._filesystem(path).open(path)), 1 << 16))

    def _path(self, address: str) -> Any:
        return _session()._jvm.org.apache.hadoop.fs.Path(address)

    def _filesystem(self, path: Any) -> Any:
        return path.getFileSystem(_session()._jsc.hadoopConfiguration())


class _JavaFile(io.RawIOBase):
    """Hadoop's FSDataInputStream as a raw file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = bytes(self._stream.readNBytes(len(buffer)))
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, whence
        self._stream.seek(offset)
        return offset

    def tell(self) -> int:
        return int(self._stream.getPos())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _entry_of(status: Any) -> Entry:
    path = status.getPath()
    return Entry(path.getName(), path.toString(), status.getLen(), status.isDirectory())


def _session() -> Any:
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    assert session is not None, "only a driver whose session has started can open this"
    return session


def files_of(address: str, by_spark: bool) -> Files:
    """How an address is opened."""
    if by_spark:
        return HadoopFiles()
    return ArrowFiles() if "://" in address else LocalFiles()
