"""The dataset's Parquet files: opened only if the manifest names them, and compared with it before anything is read."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from pipeline.atomic_files import xxh3_of
from pipeline.dataset.manifest import DatasetFile
from pipeline.errors import InputError
from pipeline.locations import open_location
from training.feed.column_reader import ColumnReader, PyarrowColumn, StoredRowGroup
from training.feed.columns import Columns, check_schema
from training.feed.parquet_pages import PlainColumn, pages_of, plain_columns
from training.feed.settings import PAGES, PYARROW

Result = TypeVar("Result")
Stamp = tuple[int, int]  # bytes, nanoseconds of the last change

VERIFY = ("size", "checksum")
_REMEDY = "run jobs.preprocess again."


@dataclass(frozen=True)
class _Checked:
    """A file that was what the manifest says when it had this stamp."""

    stamp: Stamp
    metadata: pq.FileMetaData
    plain: dict[str, PlainColumn]  # of the needed columns
    others: list[str]


class Shards:
    """The files of one dataset, for any number of reading threads.

    The first opening of a file compares its size, footer and column types with the manifest and, with
    `verify="checksum"`, hashes it whole. A file whose size or time of change differs at a later reading is compared
    again, and always hashed. Every failure is an InputError that names the file.
    """

    def __init__(self, dataset: str, columns: Columns, verify: str, decoder: str = PAGES) -> None:
        if verify not in VERIFY:
            raise InputError(f"feed.verify={verify} is not one of {', '.join(VERIFY)}.")
        if decoder not in (PAGES, PYARROW):
            raise InputError(f"feed.decoder={decoder} is not one of {PAGES}, {PYARROW}.")
        self._filesystem, self._root = open_location(dataset)
        self._columns, self._verify, self._decoder = columns, verify, decoder
        self._checked: dict[str, _Checked] = {}
        self._lock = threading.Lock()

    def read(self, file: DatasetFile, row_group: int) -> StoredRowGroup:
        """The needed columns of one row group."""
        checked = self._checked_now(file)
        try:
            return _guarded(file, lambda: self._read(file, row_group, checked))
        finally:
            self._checked_now(file)  # raises if the file has changed while it was read, and says how

    def _read(self, file: DatasetFile, row_group: int, checked: _Checked) -> StoredRowGroup:
        with self._open(file) as stream:
            columns: dict[str, ColumnReader] = {}
            if checked.others:
                with pq.ParquetFile(stream, metadata=checked.metadata, pre_buffer=True) as parquet:
                    table = parquet.read_row_group(row_group, columns=checked.others, use_threads=False)
                columns |= {name: PyarrowColumn(table.column(name)) for name in checked.others}
            columns |= pages_of(stream, row_group, checked.plain)
        return StoredRowGroup(file.row_groups[row_group].rows, columns)

    def _open(self, file: DatasetFile) -> pa.NativeFile:
        # Never memory-mapped: it is no faster here, and a file cut short while it is mapped ends the process.
        return self._filesystem.open_input_file(f"{self._root.rstrip('/')}/{file.path}")

    def _checked_now(self, file: DatasetFile) -> _Checked:
        """`file`, which is what the manifest says, now."""
        with self._lock:  # so that of two threads that want one file the second waits for the first one's verdict
            before = self._checked.get(file.path)
            stamp = _guarded(file, lambda: self._stamp(file))
            if before is None or before.stamp != stamp:
                in_full = self._verify == "checksum" or before is not None
                before = self._checked[file.path] = _guarded(file, lambda: self._check(file, stamp, in_full))
            return before

    def _stamp(self, file: DatasetFile) -> Stamp:
        path = f"{self._root.rstrip('/')}/{file.path}"
        info = self._filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(path)
        return info.size, info.mtime_ns

    def _check(self, file: DatasetFile, stamp: Stamp, in_full: bool) -> _Checked:
        if stamp[0] != file.bytes:
            raise InputError(f"{file.path} has {stamp[0]} bytes where the manifest says {file.bytes}; {_REMEDY}")
        with self._open(file) as stream:
            if in_full and (found := xxh3_of(stream)) != file.xxh3:
                raise InputError(
                    f"{file.path} has the checksum {found} where the manifest says {file.xxh3}: its bytes have changed "
                    f"since it was written; {_REMEDY}"
                )
            stream.seek(0)
            with pq.ParquetFile(stream) as parquet:
                metadata, schema = parquet.metadata, parquet.schema_arrow
                plain = plain_columns(stream, metadata) if self._decoder == PAGES else {}
        if metadata.num_row_groups != len(file.row_groups):
            raise InputError(
                f"{file.path} has {metadata.num_row_groups} row groups where the manifest says "
                f"{len(file.row_groups)}; {_REMEDY}"
            )
        for number, counts in enumerate(file.row_groups):
            if (found_rows := metadata.row_group(number).num_rows) != counts.rows:
                raise InputError(
                    f"{file.path}, row group {number} has {found_rows} rows where the manifest says {counts.rows}; "
                    f"{_REMEDY}"
                )
        check_schema(schema, self._columns, file.path)
        names = list(self._columns.types())
        others = [name for name in names if name not in plain]
        return _Checked(stamp, metadata, {name: plain[name] for name in names if name in plain}, others)


def _guarded(file: DatasetFile, read: Callable[[], Result]) -> Result:
    """Call `read`; what the file system and Parquet raise becomes an InputError that names the file."""
    try:
        return read()
    except FileNotFoundError as error:
        raise InputError(f"{file.path} is missing, though the manifest names it; {_REMEDY}") from error
    except (OSError, pa.ArrowException) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file.path} cannot be read ({first_line}); {_REMEDY}") from error
