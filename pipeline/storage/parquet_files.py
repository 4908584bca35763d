"""The files of a dataset: written to scratch space by any attempt of a task, named by their content when whole.

Parquet with zstd 1 and no dictionary, which was both smallest and fastest; row groups of a fixed number of impressions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.dataset.manifest import LABELS, RowGroup
from pipeline.errors import writing
from pipeline.storage.staged_file import StagedFile

PARQUET = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": False,
    "data_page_version": "2.0",  # read 5 % faster than 1.0, for 2 % more bytes
}
QUARANTINE_SCHEMA = pa.schema(
    [("source", pa.string()), ("offset", pa.int64()), ("reason", pa.string()), ("line", pa.binary())]
)
_QUARANTINE_BYTES = 8 << 20  # of lines in a row group
NUM_EXAMPLES = 3  # lines of each reason that the audit shows
_EXAMPLE_BYTES = 400  # of a line
#: reason → [source, offset, beginning of the line] of the first lines with it.
Examples = dict[str, list[list[Any]]]


class HashedFile:
    """A file for writing that knows the size and xxh3 of what was written; pyarrow writes front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.closed = False
        with writing(str(path)):
            self._stream = path.open("xb")
        self._hash = xxhash.xxh3_64()

    def write(self, data: Any) -> int:
        """Append."""
        self._hash.update(data)
        with writing(str(self.path)):
            self.bytes += self._stream.write(data)
        return len(data)

    def tell(self) -> int:
        """The position, which is the size."""
        return self.bytes

    def flush(self) -> None:
        """To the operating system."""
        with writing(str(self.path)):
            self._stream.flush()

    def close(self) -> None:
        """Finish."""
        with writing(str(self.path)):
            self._stream.close()
        self.closed = True

    @property
    def xxh3(self) -> str:
        """16 hex digits."""
        return self._hash.hexdigest()

    def staged(self) -> StagedFile:
        """Describe the file, which is closed."""
        return StagedFile(str(self.path), self.bytes, self.xxh3)


@dataclass
class PartWriter:
    """Writes the rows of one file: holds them until a row group is full, give or take one row."""

    path: Path
    schema: pa.Schema
    impressions_per_row_group: int
    with_daction: bool
    row_groups: list[RowGroup] = field(default_factory=list)
    _held: list[pa.Table] = field(default_factory=list)
    _count_K: np.ndarray = field(default_factory=lambda: np.zeros(1 + len(LABELS), np.int64))
    _file: HashedFile | None = None
    _writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table, count_NK: np.ndarray) -> None:
        """Append rows; `count_NK` [rows, 1 + labels] has the impressions and labels of each."""
        start = 0
        reached_N = np.cumsum(count_NK[:, 0])
        while start < len(reached_N):
            before = int(reached_N[start - 1]) if start else 0
            wanted = before + self.impressions_per_row_group - int(self._count_K[0])
            full_at = int(np.searchsorted(reached_N, wanted))
            stop = min(full_at + 1, len(reached_N))
            self._held.append(table.slice(start, stop - start))
            self._count_K += count_NK[start:stop].sum(axis=0)
            if full_at < len(reached_N):
                self._flush()
            start = stop

    def finish(self) -> StagedFile | None:
        """Close the file and describe it; None where there was no row. `row_groups` are complete then."""
        self._flush()
        if self._writer is None or self._file is None:
            return None
        self._writer.close()
        self._file.close()
        return self._file.staged()

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._file = HashedFile(self.path)
            self._writer = pq.ParquetWriter(pa.PythonFile(self._file, "w"), self.schema, **PARQUET)
        table = pa.concat_tables(self._held)
        self._writer.write_table(table, row_group_size=table.num_rows)
        impressions, clicks, dactions, conversions = self._count_K.tolist()
        group = RowGroup(table.num_rows, impressions, clicks, conversions, dactions if self.with_daction else None)
        self.row_groups.append(group)
        self._held = []
        self._count_K[:] = 0


@dataclass(frozen=True)
class QuarantineFile:
    """A quarantine file that is written."""

    file: StagedFile
    num_lines: int
    examples: Examples


def write_quarantine(path: Path, batches: Iterator[pa.RecordBatch]) -> QuarantineFile:
    """Write batches of QUARANTINE_SCHEMA as one file. The lines of a reason come in the order of the log."""
    file = HashedFile(path)
    num_lines = 0
    examples: Examples = {}
    with pq.ParquetWriter(pa.PythonFile(file, "w"), QUARANTINE_SCHEMA, **PARQUET) as writer:
        for batch in _regrouped(batches):
            writer.write_batch(batch)
            num_lines += batch.num_rows
            _add_examples(examples, batch)
    file.close()
    return QuarantineFile(file.staged(), num_lines, examples)


def _add_examples(examples: Examples, batch: pa.RecordBatch) -> None:
    """Add the first lines of `batch` with each reason, until there are enough."""
    for reason in pa.compute.unique(batch.column("reason")).to_pylist():
        found = examples.setdefault(reason, [])
        mine = batch.filter(pa.compute.equal(batch.column("reason"), reason)).slice(0, NUM_EXAMPLES - len(found))
        for row in mine.to_pylist():
            text = row["line"][:_EXAMPLE_BYTES].decode("utf-8", "backslashreplace")
            found.append([row["source"], row["offset"], text + "…" * (len(row["line"]) > _EXAMPLE_BYTES)])


def quarantine_batch(
    sources: Sequence[str], offsets: Sequence[int], reasons: Sequence[str], lines: Sequence[bytes]
) -> pa.RecordBatch:
    """A batch of QUARANTINE_SCHEMA."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array(column, kind)
            for column, kind in zip((sources, offsets, reasons, lines), QUARANTINE_SCHEMA.types, strict=True)
        ],
        schema=QUARANTINE_SCHEMA,
    )


def _regrouped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of a size that does not depend on how they came: it decides the bytes of the file."""
    held: list[pa.RecordBatch] = []
    num_bytes = 0
    for batch in batches:
        length_N = pa.compute.binary_length(batch.column("line")).to_numpy()
        start = 0
        for row, length in enumerate(length_N.tolist()):
            num_bytes += length + 64
            if num_bytes >= _QUARANTINE_BYTES:
                yield pa.concat_batches([*held, batch.slice(start, row + 1 - start)])
                held, num_bytes, start = [], 0, row + 1
        held.append(batch.slice(start))
    if rest := [batch for batch in held if batch.num_rows]:
        yield pa.concat_batches(rest)
