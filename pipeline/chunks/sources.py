"""The raw files of a log, and the byte ranges (input splits) that tasks read.

A table (`sample_skeleton_train.csv`) is one file, one gzip file, or a directory of parts, read in the order of their
names. Offsets are in the uncompressed file; (ordinal of the file, offset of the line) is the order of the log.
"""

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline.chunks.files import files_of
from pipeline.errors import InputError, reason_of

SKELETON, CONTEXT, ACTIONS = "sample_skeleton", "common_features", "actions"
PERIODS = ("train", "test")


@dataclass(frozen=True)
class SourceFile:
    """One raw file; `ordinal` is its place in the order of the log."""

    ordinal: int
    name: str  # relative to source.path
    path: str
    bytes: int
    table: str  # SKELETON, CONTEXT or ACTIONS
    period: str  # train | test
    compressed: bool
    stamp: tuple[int, ...] = ()  # as `Entry` has it, when the job found the file
    by_spark: bool = False  # Python cannot open it: the driver goes through Spark's Java side, tasks are given lines

    def open(self) -> BinaryIO:
        """Open the file for reading its uncompressed bytes."""
        stream = files_of(self.path, self.by_spark).open(self.path)
        if not self.compressed:
            return stream
        codec = ARROW_CODECS.get(PurePosixPath(self.name).suffix)
        return _unpacked(stream, codec) if codec else cast(BinaryIO, _Gzip(stream))


#: Ends of the names of compressed files that event logs may have beside .gz, with pyarrow's name of the codec.
ARROW_CODECS = {".zst": "zstd", ".bz2": "bz2"}


def _unpacked(stream: BinaryIO, codec: str) -> BinaryIO:
    """Return the uncompressed bytes of a stream, whose frames follow each other; OSError where one is cut off."""
    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(stream, codec), 1 << 16))


class _Gzip(gzip.GzipFile):
    """A gzip file that also closes the file below it."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._stream = stream

    def close(self) -> None:
        super().close()
        self._stream.close()


@contextmanager
def reading_source(source: SourceFile) -> Iterator[BinaryIO]:
    """Open a file for the length of the block. Raises InputError if it cannot be read: gone, damaged, cut off."""
    try:
        with source.open() as stream:
            yield stream
    except FileNotFoundError as error:
        raise InputError(f"{source.path} is gone since the job began; put it back, or run again without it.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{source.path} cannot be read to its end ({reason_of(error)}); repair or replace the file, then run again."
        ) from error


#: Ends of the names of compressed files that are not read. Spark would read some of them, with offsets of its own.
_OTHER_COMPRESSIONS = (".bz2", ".zst", ".xz", ".lz4", ".snappy", ".deflate", ".zip", ".lzo", ".Z", ".7z", ".br")


def check_parts(directory: str, oddities: Mapping[str, str], compressions: tuple[str, ...] = (".gz",)) -> None:
    """Raise InputError for a part of a table that is no file, or compressed otherwise than by `compressions`.

    `oddities` says of each name what it is if it is no file, or "".
    """
    found = [f"{name} ({oddity})" for name, oddity in sorted(oddities.items()) if oddity]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(
            f"{directory} holds what is no file: {', '.join(found[:5])}{more}; a table is a file or a directory of "
            "files, so put the files themselves there, or remove these (names that begin with _ or . are left out)."
        )
    refused = tuple(end for end in _OTHER_COMPRESSIONS if end not in compressions)
    other = [name for name in sorted(oddities) if name.endswith(refused)]
    if other:
        known = "only .gz is" if len(compressions) == 1 else f"only {', '.join(compressions)} are"
        raise InputError(
            f"{directory}/{other[0]} is compressed as no log may be; {known} read: unpack it, or pack it with gzip."
        )


@dataclass(frozen=True)
class InputSplit:
    """The lines of a file that begin in [start, start + length)."""

    source: SourceFile
    start: int
    length: int


def read_line_at(stream: BinaryIO, offset: int) -> bytes:
    """Read the line that begins at `offset`, without its line feed."""
    stream.seek(offset)
    line = stream.readline()
    return line[:-1] if line.endswith(b"\n") else line
