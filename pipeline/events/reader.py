"""Read labelled impressions as chunks, so that everything after the parser serves event logs too.

A chunk of the table `common_features` holds the first impression of each context, with the fields of scope context.
A chunk of `sample_skeleton` holds the impressions. Rejected rows come last, as text with a reason each.
"""

# Shapes: L rows of a chunk, V values.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.chunks import line_columns, reasons
from pipeline.chunks.chunk import SCOPE_OF, Chunk, Parsed
from pipeline.chunks.sources import CONTEXT, InputSplit, SourceFile
from pipeline.dataset.manifest import SPLITS
from pipeline.events.tables import GOOD_STATUS
from pipeline.features.fields import Catalogue, Field
from pipeline.kernels.hashing import TRAIN

_MOST_ROWS = 16384  # of a chunk
_LABEL_BITS = {
    "click_at": line_columns.CLICK_BIT,
    "conversion_at": line_columns.BUY_BIT,
    "daction_at": line_columns.DACTION_BIT,
}


@dataclass(frozen=True)
class EventReader:
    """A reader of what label() wrote, as ChunkReader is one of a raw log."""

    catalogue: Catalogue
    rejects: tuple[str, ...]  # the paths of the files of rejected rows

    def read(self, split: InputSplit) -> Iterator[Chunk]:
        """Yield the chunks of one file."""
        if split.source.path in self.rejects:
            yield from _rejected(split.source)
            return
        scope = SCOPE_OF[split.source.table]
        numbers = [number for number, entry in enumerate(self.catalogue.fields) if entry.scope == scope]
        columns = ["split", "at", "impression_id", "context_key", "in_context", *_LABEL_BITS]
        for number in numbers:
            columns += [f"f{number}"] + [f"w{number}"] * self.catalogue.fields[number].weighted
        for batch in pq.ParquetFile(split.source.path).iter_batches(_MOST_ROWS, columns=["status", *columns]):
            chosen = pc.equal(batch.column("status"), GOOD_STATUS)
            if split.source.table == CONTEXT:
                chosen = pc.and_(chosen, pc.equal(batch.column("in_context"), 1))
            rows = batch.filter(chosen)
            # One chunk a split: a context may be in two splits, and encode() takes a run's split from its first line.
            for place in range(len(SPLITS)):
                if (mine := rows.filter(pc.equal(rows.column("split"), place))).num_rows:
                    yield self._chunk(split.source, place, mine, numbers)

    def _chunk(self, source: SourceFile, place: int, rows: pa.RecordBatch, numbers: Sequence[int]) -> Chunk:
        line_table = np.zeros((rows.num_rows, line_columns.LINE_COLUMNS), np.int64)
        line_table[:, line_columns.START] = rows.column("in_context").to_numpy()
        line_table[:, line_columns.KEY] = rows.column("context_key").to_numpy()
        line_table[:, line_columns.HAS_KEY] = 1
        line_table[:, line_columns.SAMPLE_ID] = rows.column("impression_id").to_numpy()
        for name, bit in _LABEL_BITS.items():
            line_table[:, line_columns.LABEL_FLAGS] |= bit * rows.column(name).is_valid().to_numpy(zero_copy_only=False)
        field_V, id_V, weight_V, end_L = values_of(rows, self.catalogue.fields, numbers)
        line_table[:, line_columns.VALUES_END] = end_L
        parsed = Parsed(line_table, field_V, id_V, weight_V)
        split_L = np.full(rows.num_rows, place)
        return Chunk(source, 0, b"", parsed, split_L, np.ascontiguousarray(rows.column("at").to_numpy()))


def values_of(
    rows: pa.RecordBatch, fields: Sequence[Field], numbers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (field, id, weight) of every value of the fields `numbers`, row by row, and the end of each row."""
    columns = [_column(rows, number, fields[number]) for number in numbers]
    total_L = np.zeros(rows.num_rows, np.int64)
    for length_L, _, _ in columns:
        total_L += length_L
    end_L = np.cumsum(total_L)
    next_L = end_L - total_L  # where the next value of each row goes
    num_values = int(end_L[-1]) if len(end_L) else 0
    field_V, id_V = np.empty(num_values, np.int16), np.empty(num_values, np.int64)
    weight_V = np.ones(num_values, np.float32)
    for number, (length_L, ids, weights) in zip(numbers, columns, strict=True):
        first_L = np.cumsum(length_L) - length_L
        at = np.arange(len(ids)) + np.repeat(next_L - first_L, length_L)
        field_V[at], id_V[at] = number, ids
        if weights is not None:
            weight_V[at] = weights
        next_L = next_L + length_L
    return field_V, id_V, weight_V, end_L


def _column(rows: pa.RecordBatch, number: int, entry: Field) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return (number of values of each row, the ids, the weights) of one field; a number is the weight of the id 0."""
    column = rows.column(f"f{number}")
    if entry.kind_of_field.reads_vectors:
        values = column.flatten().to_numpy()
        return pc.list_value_length(column).to_numpy().astype(np.int64), np.zeros(len(values), np.int64), values
    if not pa.types.is_list(column.type):
        length_L = column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
        values = column.drop_null().to_numpy()
        return (length_L, np.zeros(len(values), np.int64), values) if entry.reads_numbers else (length_L, values, None)
    length_L = pc.list_value_length(column).to_numpy().astype(np.int64)
    weights = rows.column(f"w{number}").flatten().to_numpy() if entry.weighted else None
    return length_L, column.flatten().to_numpy(), weights


def _rejected(source: SourceFile) -> Iterator[Chunk]:
    """Yield the rejected rows, one behind the other: the offset of each is where it begins in all of them together."""
    offset = 0
    for batch in pq.ParquetFile(source.path).iter_batches(_MOST_ROWS):
        lines = batch.column("line").cast(pa.binary()).to_pylist()  # it may not be UTF-8
        line_table = np.zeros((len(lines), line_columns.LINE_COLUMNS), np.int64)
        line_table[:, line_columns.END] = np.cumsum([len(line) for line in lines])
        line_table[1:, line_columns.START] = line_table[:-1, line_columns.END]
        line_table[:, line_columns.REASON] = [
            reasons.REASONS.index(reason) for reason in batch.column("status").to_pylist()
        ]
        split_L = np.array(batch.column("split").fill_null(TRAIN).to_numpy(), np.int64)
        none = Parsed(line_table, np.empty(0, np.int16), np.empty(0, np.int64), np.empty(0, np.float32))
        yield Chunk(source, offset, b"".join(lines), none, split_L)
        offset += int(line_table[-1, line_columns.END]) if len(lines) else 0
