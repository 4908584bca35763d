"""The dataset's Parquet files: opened only if the manifest names them, and compared with it before they are read."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from pipeline.atomic_files import xxh3_of
from pipeline.dataset.manifest import REMEDY, DatasetFile
from pipeline.errors import InputError
from pipeline.locations import open_location
from training.feed.column_reader import ColumnReader, PyarrowColumn, StoredRowGroup
from training.feed.columns import Columns, check_schema
from training.feed.parquet_pages import PlainColumn, pages_of, plain_columns
from training.feed.settings import PAGES, PYARROW

Stamp = tuple[int, int]  # bytes, modification time in nanoseconds

VERIFY = ("size", "checksum")


@dataclass(frozen=True)
class _FileState:
    """A file that agreed with the manifest when it had this stamp."""

    stamp: Stamp
    metadata: pq.FileMetaData
    plain: dict[str, PlainColumn]  # the columns to read that ColumnPages decodes
    others: list[str]  # the columns to read that pyarrow decodes


class DatasetFiles:
    """The files of one dataset, for any number of reading threads.

    The first reading of a file compares its size, footer and column types with the manifest and, with
    `verify="checksum"`, its checksum. A file whose size or modification time has changed since is compared again,
    always with its checksum. Every failure is an InputError that names the file.
    """

    def __init__(self, dataset: str, columns: Columns, verify: str, decoder: str = PAGES) -> None:
        if verify not in VERIFY:
            raise InputError(f"feed.verify={verify} is not one of {', '.join(VERIFY)}.")
        if decoder not in (PAGES, PYARROW):
            raise InputError(f"feed.decoder={decoder} is not one of {PAGES}, {PYARROW}.")
        self._filesystem, self._root = open_location(dataset)
        self._columns, self._verify, self._decoder = columns, verify, decoder
        self._states: dict[str, _FileState] = {}
        self._lock = threading.Lock()

    def read(self, file: DatasetFile, row_group: int) -> StoredRowGroup:
        """Read the columns of one row group."""
        state = self._verify_now(file)
        try:
            with _input_errors(file):
                return self._read(file, row_group, state)
        finally:
            self._verify_now(file)  # raises if the file has changed while it was read, and says how

    def _read(self, file: DatasetFile, row_group: int, state: _FileState) -> StoredRowGroup:
        with self._open(file) as stream:
            columns: dict[str, ColumnReader] = {}
            if state.others:
                with pq.ParquetFile(stream, metadata=state.metadata, pre_buffer=True) as parquet:
                    table = parquet.read_row_group(row_group, columns=state.others, use_threads=False)
                columns |= {name: PyarrowColumn(table.column(name)) for name in state.others}
            columns |= pages_of(stream, row_group, state.plain)
        return StoredRowGroup(file.row_groups[row_group].rows, columns)

    def _open(self, file: DatasetFile) -> pa.NativeFile:
        # Never memory-mapped: that is no faster here, and truncating a mapped file kills the process.
        return self._filesystem.open_input_file(f"{self._root.rstrip('/')}/{file.path}")

    def _verify_now(self, file: DatasetFile) -> _FileState:
        """Compare `file` with the manifest, unless that was done and it has not changed since."""
        with (
            self._lock,
            _input_errors(file),
        ):  # a second thread that wants the same file waits for the first one's result
            state = self._states.get(file.path)
            stamp = self._stamp(file)
            if state is None or state.stamp != stamp:
                with_checksum = self._verify == "checksum" or state is not None
                state = self._states[file.path] = self._compare(file, stamp, with_checksum)
            return state

    def _stamp(self, file: DatasetFile) -> Stamp:
        path = f"{self._root.rstrip('/')}/{file.path}"
        info = self._filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(path)
        return info.size, info.mtime_ns

    def _compare(self, file: DatasetFile, stamp: Stamp, with_checksum: bool) -> _FileState:
        if stamp[0] != file.bytes:
            raise InputError(f"{file.path} has {stamp[0]} bytes where the manifest says {file.bytes}; {REMEDY}")
        with self._open(file) as stream:
            if with_checksum and (found := xxh3_of(stream)) != file.xxh3:
                raise InputError(
                    f"{file.path} has the checksum {found} where the manifest says {file.xxh3}: its bytes have changed "
                    f"since it was written; {REMEDY}"
                )
            stream.seek(0)
            with pq.ParquetFile(stream) as parquet:
                metadata, schema = parquet.metadata, parquet.schema_arrow
                plain = plain_columns(stream, metadata) if self._decoder == PAGES else {}
        if metadata.num_row_groups != len(file.row_groups):
            raise InputError(
                f"{file.path} has {metadata.num_row_groups} row groups where the manifest says "
                f"{len(file.row_groups)}; {REMEDY}"
            )
        for number, counts in enumerate(file.row_groups):
            if (found_rows := metadata.row_group(number).num_rows) != counts.rows:
                raise InputError(
                    f"{file.path}, row group {number} has {found_rows} rows where the manifest says {counts.rows}; "
                    f"{REMEDY}"
                )
        check_schema(schema, self._columns, file.path)
        names = list(self._columns.types())
        others = [name for name in names if name not in plain]
        return _FileState(stamp, metadata, {name: plain[name] for name in names if name in plain}, others)


@contextlib.contextmanager
def _input_errors(file: DatasetFile) -> Iterator[None]:
    """Turn what the file system and Parquet raise into an InputError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{file.path} is missing, though the manifest names it; {REMEDY}") from error
    except (OSError, pa.ArrowException) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file.path} cannot be read ({first_line}); {REMEDY}") from error
