"""Rows: the columns of context rows (DESIGN §4), gathered from records field by field into Arrow."""

# Shapes: N rows, I impressions, P records of a scope, O fields of arity one, M of arity
# many, Q numeric fields, X words that every record has (ones and numbers), V values.

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.contexts import records
from pipeline.contexts.group import Selected, wide
from pipeline.contexts.records import NO_GROUP, Layout
from pipeline.dataset.manifest import LABELS
from pipeline.dataset.schema import columns_of, list_of
from pipeline.features.fields import Catalogue
from pipeline.kernels.jit import nb

_LABEL_BITS = {"click": records.CLICK, "daction": records.DACTION, "conversion": records.CONVERSION}


@dataclass(frozen=True)
class Rows:
    """Context rows as a table, and of each row the key of its context and its counts."""

    table: pa.Table
    key_N: np.ndarray  # int64
    count_NK: np.ndarray  # int64: impressions, then the labels in the order of manifest.LABELS


def rows_of(selected: Selected, catalogue: Catalogue, schema: pa.Schema) -> Rows:
    """Build the rows of `selected`; both layouts follow from the catalogue."""
    word_W, num_rows = selected.word_W, len(selected.context_N)
    contexts = _gather_records(word_W, selected.context_N, records.layout_of(catalogue, "context"))
    impressions = _gather_records(word_W, selected.impression_I, records.layout_of(catalogue, "impression"))
    first_N = np.r_[selected.first_N, len(selected.impression_I)]
    row_offsets = pa.py_buffer(first_N.astype(np.int32))
    key_N = _wides(word_W, selected.context_N, records.KEY)
    columns: dict[str, pa.Array] = {
        "context_id": _hex_strings(key_N),
        "group_id": _group_ids(_wides(word_W, selected.context_N, records.ID)),
        "impression_id": _lists(pa.int64(), row_offsets, _wides(word_W, selected.impression_I, records.ID)),
    }
    if catalogue.timed:
        columns["timestamp"] = _lists(pa.int64(), row_offsets, _wides(word_W, selected.impression_I, records.TIME))
    label_I = word_W[selected.impression_I + records.LABELS]
    count_NK = np.zeros((num_rows, 1 + len(LABELS)), np.int64)
    count_NK[:, 0] = np.diff(first_N)
    for place, label in enumerate(LABELS):
        value_I = (label_I & _LABEL_BITS[label] > 0).astype(np.int8)
        count_NK[:, 1 + place] = np.add.reduceat(value_I, selected.first_N, dtype=np.int64) if num_rows else 0
        columns[label] = _lists(pa.int8(), row_offsets, value_I)
    _context_columns(columns, contexts)
    _impression_columns(columns, impressions, first_N, row_offsets)
    table = pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
    return Rows(table, key_N, count_NK)


@dataclass(frozen=True)
class _Gathered:
    """The fields of one scope over P records, field-major."""

    layout: Layout
    one_OP: np.ndarray  # int32
    number_QP: np.ndarray  # float32, NaN where missing
    length_MP: np.ndarray  # int32
    begin_M: np.ndarray  # int64 [M + 1], where the values of a field begin
    value_V: np.ndarray  # int32
    weight_V: np.ndarray  # float32, nothing where the field has no weights

    def of_many(self, many: int) -> tuple[np.ndarray, np.ndarray]:
        """(values, weights) of a field of arity many over all records."""
        chosen = slice(self.begin_M[many], self.begin_M[many + 1])
        return self.value_V[chosen], self.weight_V[chosen]


def _gather_records(word_W: np.ndarray, position_P: np.ndarray, layout: Layout) -> _Gathered:
    num_ones = len(layout.ones)
    fixed_XP = np.empty((num_ones + layout.num_numbers, len(position_P)), np.int32)
    length_MP = np.empty((len(layout.many), len(position_P)), np.int32)
    _gather_fixed(word_W, position_P, layout.header, fixed_XP, length_MP)
    begin_M = np.r_[0, np.cumsum(length_MP.sum(axis=1, dtype=np.int64))]
    value_V, weight_V = np.empty(begin_M[-1], np.int32), np.empty(begin_M[-1], np.float32)
    _gather_values(
        word_W, position_P, layout.header + len(fixed_XP), layout.is_weighted_M, begin_M[:-1].copy(), value_V,
        weight_V.view(np.int32),
    )  # fmt: skip
    number_QP = fixed_XP[num_ones:].view(np.float32)
    return _Gathered(layout, fixed_XP[:num_ones], number_QP, length_MP, begin_M, value_V, weight_V)


@nb.njit(cache=True)
def _gather_fixed(word_W, position_P, header, fixed_XP, length_MP):  # type: ignore[no-untyped-def]
    num_fixed = len(fixed_XP)
    for p in range(len(position_P)):
        word = position_P[p] + header
        for fixed in range(num_fixed):
            fixed_XP[fixed, p] = word_W[word + fixed]
        for many in range(len(length_MP)):
            length_MP[many, p] = word_W[word + num_fixed + many]


@nb.njit(cache=True)
def _gather_values(word_W, position_P, lengths, is_weighted_M, at_M, value_V, weight_bits_V):  # type: ignore[no-untyped-def]
    num_many = len(is_weighted_M)
    for p in range(len(position_P)):
        length = position_P[p] + lengths
        value = length + num_many
        weight = value
        for many in range(num_many):
            weight += word_W[length + many]
        for many in range(num_many):
            count = word_W[length + many]
            at = at_M[many]
            for i in range(count):
                value_V[at + i] = word_W[value + i]
            value += count
            if is_weighted_M[many]:
                for i in range(count):
                    weight_bits_V[at + i] = word_W[weight + i]
                weight += count
            at_M[many] = at + count


@nb.njit(cache=True)
def _wides(word_W, position_P, word):  # type: ignore[no-untyped-def]
    out = np.empty(len(position_P), np.int64)
    for p in range(len(position_P)):
        out[p] = wide(word_W, position_P[p] + word)
    return out


def _context_columns(columns: dict[str, pa.Array], contexts: _Gathered) -> None:
    for one, entry in enumerate(contexts.layout.ones):
        columns[entry.name] = pa.array(contexts.one_OP[one])
    for place, entry in zip(contexts.layout.number_of, contexts.layout.numbers, strict=True):
        columns[entry.name] = entry.kind_of_field.column(contexts.number_QP[place], entry.parameters)
    for many, entry in enumerate(contexts.layout.many):
        value_V, weight_V = contexts.of_many(many)
        offsets = pa.py_buffer(np.r_[0, np.cumsum(contexts.length_MP[many])].astype(np.int32))
        columns[entry.name] = _lists(pa.int32(), offsets, value_V)
        if entry.weighted:
            columns[f"{entry.name}__weight"] = _lists(pa.float32(), offsets, weight_V)


def _impression_columns(
    columns: dict[str, pa.Array], impressions: _Gathered, first_N: np.ndarray, row_offsets: pa.Buffer
) -> None:
    for one, entry in enumerate(impressions.layout.ones):
        columns[entry.name] = _lists(pa.int32(), row_offsets, impressions.one_OP[one])
    for place, entry in zip(impressions.layout.number_of, impressions.layout.numbers, strict=True):
        flat = entry.kind_of_field.column(impressions.number_QP[place], entry.parameters)
        (stored,) = columns_of(entry)
        num_lists = row_offsets.size // 4 - 1
        columns[entry.name] = pa.ListArray.from_buffers(stored.type, num_lists, [None, row_offsets], children=[flat])
    for many, entry in enumerate(impressions.layout.many):
        value_V, weight_V = impressions.of_many(many)
        length_I = impressions.length_MP[many]
        value_offsets = pa.py_buffer(np.r_[0, np.cumsum(length_I)][first_N].astype(np.int32))
        columns[entry.name] = _lists(pa.int32(), value_offsets, value_V)
        columns[f"{entry.name}__length"] = _lists(pa.int32(), row_offsets, length_I)
        if entry.weighted:
            columns[f"{entry.name}__weight"] = _lists(pa.float32(), value_offsets, weight_V)


def _lists(kind: pa.DataType, offsets: pa.Buffer, values: np.ndarray) -> pa.ListArray:
    flat = pa.array(np.ascontiguousarray(values), kind)
    return pa.ListArray.from_buffers(list_of(kind), offsets.size // 4 - 1, [None, offsets], children=[flat])


def _group_ids(id_N: np.ndarray) -> pa.Array:
    return pa.array(id_N, pa.int64(), mask=id_N == NO_GROUP)


def _hex_strings(key_N: np.ndarray) -> pa.StringArray:
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    byte_N8 = key_N.astype(">i8").view(np.uint8).reshape(-1, 8)
    text = digits[np.stack([byte_N8 >> 4, byte_N8 & 15], axis=-1)]
    offsets = pa.py_buffer(np.arange(0, 16 * len(key_N) + 1, 16, dtype=np.int32))
    return pa.StringArray.from_buffers(len(key_N), offsets, pa.py_buffer(np.ascontiguousarray(text)))
