"""Rows: the columns of context rows (docs/dataset.md), gathered from records field by field into Arrow."""

# Shapes: N rows, R records of a scope (contexts of rows, or impressions), V values, W words.

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.contexts import records
from pipeline.contexts.group import Selection, int64_at
from pipeline.contexts.records import NO_GROUP_ID, Layout
from pipeline.dataset.kinds import VECTOR
from pipeline.dataset.manifest import LABELS
from pipeline.dataset.schema import columns_of, list_of
from pipeline.features.fields import Catalogue, Field
from pipeline.kernels.jit import nb

_BIT_OF_LABEL = {"click": records.CLICK_LABEL, "daction": records.DACTION_LABEL, "conversion": records.CONVERSION_LABEL}


@dataclass(frozen=True)
class ContextRows:
    """Context rows as a table, with the context key and the counts of each row."""

    table: pa.Table
    key_N: np.ndarray  # int64
    counts: np.ndarray  # int64 [N, 1 + labels]: impressions, then the labels in the order of manifest.LABELS


def rows_of(selected: Selection, catalogue: Catalogue, schema: pa.Schema) -> ContextRows:
    """Build the rows of `selected`, with the columns of `schema`."""
    word_W, num_rows = selected.word_W, len(selected.context_N)
    contexts = _gather_records(word_W, selected.context_N, records.layout_of(catalogue, "context"))
    impressions = _gather_records(word_W, selected.impressions, records.layout_of(catalogue, "impression"))
    first_N = np.r_[selected.first_N, len(selected.impressions)]
    row_offsets = pa.py_buffer(first_N.astype(np.int32))
    key_N = _gather_int64(word_W, selected.context_N, records.KEY_AT)
    columns: dict[str, pa.Array] = {
        "context_id": _hex_strings(key_N),
        "group_id": _group_ids(_gather_int64(word_W, selected.context_N, records.ID_AT)),
        "impression_id": _lists(pa.int64(), row_offsets, _gather_int64(word_W, selected.impressions, records.ID_AT)),
    }
    if catalogue.timed:
        columns["timestamp"] = _lists(
            pa.int64(), row_offsets, _gather_int64(word_W, selected.impressions, records.TIME_AT)
        )
    label_bits = word_W[selected.impressions + records.LABELS_AT]
    counts = np.zeros((num_rows, 1 + len(LABELS)), np.int64)
    counts[:, 0] = np.diff(first_N)
    for place, label in enumerate(LABELS):
        flag_R = (label_bits & _BIT_OF_LABEL[label] > 0).astype(np.int8)
        counts[:, 1 + place] = np.add.reduceat(flag_R, selected.first_N, dtype=np.int64) if num_rows else 0
        columns[label] = _lists(pa.int8(), row_offsets, flag_R)
    _context_columns(columns, contexts)
    _impression_columns(columns, impressions, first_N, row_offsets)
    table = pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
    return ContextRows(table, key_N, counts)


@dataclass(frozen=True)
class _FieldArrays:
    """The fields of one scope over R records, field-major."""

    layout: Layout
    ones: np.ndarray  # int32 [single-valued fields, R]
    numbers: np.ndarray  # float32 [numbers, R], NaN where missing
    lengths: np.ndarray  # int32 [multi-valued fields, R]
    bounds: np.ndarray  # int64 [multi-valued fields + 1]: where the values of each field begin, and the end
    value_V: np.ndarray  # int32
    weight_V: np.ndarray  # float32, undefined where the field has no weights

    def of_many(self, many: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (values, weights) of a multi-valued field over all records."""
        chosen = slice(self.bounds[many], self.bounds[many + 1])
        return self.value_V[chosen], self.weight_V[chosen]

    def column_of_numbers(self, entry: Field, place: int) -> pa.Array:
        """Return the values of a field whose numbers begin at `place` over all records, not yet in lists."""
        kind = entry.kind_of_field
        if not kind.reads_vectors:
            return kind.column(self.numbers[place], entry.parameters)
        return kind.column(self.numbers[place : place + entry.num_numbers].T, entry.parameters)


def _gather_records(word_W: np.ndarray, position_R: np.ndarray, layout: Layout) -> _FieldArrays:
    num_ones = len(layout.ones)
    fixed_words = np.empty((num_ones + layout.num_numbers, len(position_R)), np.int32)
    lengths = np.empty((len(layout.many), len(position_R)), np.int32)
    _gather_fixed(word_W, position_R, layout.header, fixed_words, lengths)
    bounds = np.r_[0, np.cumsum(lengths.sum(axis=1, dtype=np.int64))]
    value_V, weight_V = np.empty(bounds[-1], np.int32), np.empty(bounds[-1], np.float32)
    _gather_values(
        word_W, position_R, layout.header + len(fixed_words), layout.is_weighted, bounds[:-1].copy(), value_V,
        weight_V.view(np.int32),
    )  # fmt: skip
    numbers = fixed_words[num_ones:].view(np.float32)
    return _FieldArrays(layout, fixed_words[:num_ones], numbers, lengths, bounds, value_V, weight_V)


@nb.njit(cache=True)
def _gather_fixed(word_W, position_R, header, fixed_words, lengths):  # type: ignore[no-untyped-def]
    num_fixed = len(fixed_words)
    for r in range(len(position_R)):
        word = position_R[r] + header
        for fixed in range(num_fixed):
            fixed_words[fixed, r] = word_W[word + fixed]
        for many in range(len(lengths)):
            lengths[many, r] = word_W[word + num_fixed + many]


@nb.njit(cache=True)
def _gather_values(word_W, position_R, begin, is_weighted, value_at, value_V, weight_V):  # type: ignore[no-untyped-def]
    num_many = len(is_weighted)
    for r in range(len(position_R)):
        length = position_R[r] + begin
        value = length + num_many
        weight = value
        for many in range(num_many):
            weight += word_W[length + many]
        for many in range(num_many):
            count = word_W[length + many]
            at = value_at[many]
            for i in range(count):
                value_V[at + i] = word_W[value + i]
            value += count
            if is_weighted[many]:
                for i in range(count):
                    weight_V[at + i] = word_W[weight + i]
                weight += count
            value_at[many] = at + count


@nb.njit(cache=True)
def _gather_int64(word_W, position_R, word):  # type: ignore[no-untyped-def]
    out = np.empty(len(position_R), np.int64)
    for r in range(len(position_R)):
        out[r] = int64_at(word_W, position_R[r] + word)
    return out


def _context_columns(columns: dict[str, pa.Array], contexts: _FieldArrays) -> None:
    for one, entry in enumerate(contexts.layout.ones):
        columns[entry.name] = pa.array(contexts.ones[one])
    for place, entry in zip(contexts.layout.number_of, contexts.layout.numbers, strict=True):
        column = contexts.column_of_numbers(entry, place)
        if entry.stored == VECTOR:
            ends = pa.py_buffer(np.arange(0, len(column) + 1, entry.num_numbers, dtype=np.int32))
            column = _lists_of(entry, ends, column)
        columns[entry.name] = column
    for many, entry in enumerate(contexts.layout.many):
        value_V, weight_V = contexts.of_many(many)
        offsets = pa.py_buffer(np.r_[0, np.cumsum(contexts.lengths[many])].astype(np.int32))
        columns[entry.name] = _lists(pa.int32(), offsets, value_V)
        if entry.weighted:
            columns[f"{entry.name}__weight"] = _lists(pa.float32(), offsets, weight_V)


def _impression_columns(
    columns: dict[str, pa.Array], impressions: _FieldArrays, first_N: np.ndarray, row_offsets: pa.Buffer
) -> None:
    for one, entry in enumerate(impressions.layout.ones):
        columns[entry.name] = _lists(pa.int32(), row_offsets, impressions.ones[one])
    for place, entry in zip(impressions.layout.number_of, impressions.layout.numbers, strict=True):
        flat, offsets = impressions.column_of_numbers(entry, place), row_offsets
        if entry.stored == VECTOR:
            offsets = pa.py_buffer((first_N * entry.num_numbers).astype(np.int32))
        columns[entry.name] = _lists_of(entry, offsets, flat)
    for many, entry in enumerate(impressions.layout.many):
        value_V, weight_V = impressions.of_many(many)
        length_R = impressions.lengths[many]
        value_offsets = pa.py_buffer(np.r_[0, np.cumsum(length_R)][first_N].astype(np.int32))
        columns[entry.name] = _lists(pa.int32(), value_offsets, value_V)
        columns[f"{entry.name}__length"] = _lists(pa.int32(), row_offsets, length_R)
        if entry.weighted:
            columns[f"{entry.name}__weight"] = _lists(pa.float32(), value_offsets, weight_V)


def _lists_of(entry: Field, offsets: pa.Buffer, values: pa.Array) -> pa.ListArray:
    """Return the column of a field of numbers: its values in lists, a list at each of `offsets`."""
    (column,) = columns_of(entry)
    return pa.ListArray.from_buffers(column.type, offsets.size // 4 - 1, [None, offsets], children=[values])


def _lists(kind: pa.DataType, offsets: pa.Buffer, values: np.ndarray) -> pa.ListArray:
    flat = pa.array(np.ascontiguousarray(values), kind)
    return pa.ListArray.from_buffers(list_of(kind), offsets.size // 4 - 1, [None, offsets], children=[flat])


def _group_ids(id_N: np.ndarray) -> pa.Array:
    return pa.array(id_N, pa.int64(), mask=id_N == NO_GROUP_ID)


def _hex_strings(key_N: np.ndarray) -> pa.StringArray:
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    key_bytes = key_N.astype(">i8").view(np.uint8).reshape(-1, 8)
    text = digits[np.stack([key_bytes >> 4, key_bytes & 15], axis=-1)]
    offsets = pa.py_buffer(np.arange(0, 16 * len(key_N) + 1, 16, dtype=np.int32))
    return pa.StringArray.from_buffers(len(key_N), offsets, pa.py_buffer(np.ascontiguousarray(text)))
