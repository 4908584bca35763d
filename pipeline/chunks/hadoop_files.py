"""Files that Spark's Java side opens, on the driver: every address that Spark knows, without libhdfs.

Private names of PySpark (`SparkSession._jvm`, `._jsc`) are used in this file alone.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from pipeline.chunks.files import Entry

_BUFFER_BYTES = 1 << 16


class HadoopFiles:
    """Addresses of Hadoop's file systems through py4j: for the heads of files, and for small files."""

    def entry(self, directory: str, name: str = "") -> Entry | None:
        """Look up an address below a directory's."""
        path = self._path(f"{directory.rstrip('/')}/{name}" if name else directory)
        filesystem = self._filesystem(path)
        return _entry_from_status(filesystem.getFileStatus(path)) if filesystem.exists(path) else None

    def entries(self, addresses: Sequence[str]) -> list[Entry | None]:
        return [self.entry(address) for address in addresses]

    def children(self, directory: str) -> list[Entry]:
        path = self._path(directory)
        found = [_entry_from_status(status) for status in self._filesystem(path).listStatus(path)]
        return sorted(found, key=lambda entry: entry.name)

    def open(self, address: str) -> BinaryIO:
        path = self._path(address)
        with _java_errors_as_os_errors():
            return cast(BinaryIO, io.BufferedReader(_JavaFile(self._filesystem(path).open(path)), _BUFFER_BYTES))

    def _path(self, address: str) -> Any:
        return _session()._jvm.org.apache.hadoop.fs.Path(address)

    def _filesystem(self, path: Any) -> Any:
        return path.getFileSystem(_session()._jsc.hadoopConfiguration())


@contextmanager
def _java_errors_as_os_errors() -> Iterator[None]:
    """Raise OSError for an exception of Hadoop, as Python's own files do."""
    from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]

    try:
        yield
    except Py4JJavaError as error:
        text = str(error.java_exception.getMessage() or error.java_exception)
        is_gone = "FileNotFound" in error.java_exception.getClass().getName()
        raise (FileNotFoundError if is_gone else OSError)(text.splitlines()[0]) from error


class _JavaFile(io.RawIOBase):
    """Hadoop's FSDataInputStream as a raw file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _java_errors_as_os_errors():
            block = bytes(self._stream.readNBytes(len(buffer)))
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, whence
        with _java_errors_as_os_errors():
            self._stream.seek(offset)
        return offset

    def tell(self) -> int:
        return int(self._stream.getPos())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _entry_from_status(status: Any) -> Entry:
    path = status.getPath()
    stamp = (status.getModificationTime(),)
    return Entry(path.getName(), path.toString(), status.getLen(), status.isDirectory(), stamp)


def _session() -> Any:
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    assert session is not None, "only a driver whose session has started can open this"
    return session
