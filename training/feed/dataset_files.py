"""The dataset's Parquet files: opened only if the manifest names them, and compared with it before they are read."""

import threading
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.atomic_files import xxh3_of
from pipeline.dataset.manifest import REMEDY, DatasetFile
from pipeline.dataset.named_files import FileStamp, NamedFiles
from pipeline.errors import InputError
from training.feed.column_reader import ColumnReader, PyarrowColumn, StoredRowGroup
from training.feed.columns import Columns, check_schema
from training.feed.parquet_pages import PlainColumn, pages_of, plain_columns
from training.feed.settings import PAGES, PYARROW

VERIFY = ("size", "checksum")


@dataclass(frozen=True)
class _FileState:
    """A file that agreed with the manifest when it had this stamp."""

    stamp: FileStamp
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
        self._named = NamedFiles.below(dataset, "the manifest", REMEDY)
        self._columns, self._verify, self._decoder = columns, verify, decoder
        self._states: dict[str, _FileState] = {}
        self._lock = threading.Lock()

    def read(self, file: DatasetFile, row_group: int) -> StoredRowGroup:
        """Read the columns of one row group."""
        state = self._verify_now(file)
        try:
            with self._named.readable(file.path):
                return self._read(file, row_group, state)
        finally:
            self._verify_now(file)  # raises if the file has changed while it was read, and says how

    def _read(self, file: DatasetFile, row_group: int, state: _FileState) -> StoredRowGroup:
        with self._named.open(file.path) as stream:
            columns: dict[str, ColumnReader] = {}
            if state.others:
                with pq.ParquetFile(stream, metadata=state.metadata, pre_buffer=True) as parquet:
                    table = parquet.read_row_group(row_group, columns=state.others, use_threads=False)
                columns |= {name: PyarrowColumn(table.column(name)) for name in state.others}
            columns |= pages_of(stream, row_group, state.plain)
        return StoredRowGroup(file.row_groups[row_group].rows, columns)

    def _verify_now(self, file: DatasetFile) -> _FileState:
        """Compare `file` with the manifest, unless that was done and it has not changed since."""
        with self._lock, self._named.readable(file.path):  # a second thread waits for the first one's result
            state = self._states.get(file.path)
            stamp = self._named.check_size(file.path, file.bytes)
            if state is None or state.stamp != stamp:
                with_checksum = self._verify == "checksum" or state is not None
                state = self._states[file.path] = self._compare(file, stamp, with_checksum)
            return state

    def _compare(self, file: DatasetFile, stamp: FileStamp, with_checksum: bool) -> _FileState:
        with self._named.open(file.path) as stream:
            if with_checksum:
                self._named.compare_xxh3(file.path, xxh3_of(stream), file.xxh3)
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
