"""Encode: the good lines of a chunk become records, with indices instead of raw ids.

A context line is one record. Impressions are sorted by context within the chunk first, so that interleaved logs make
runs too. A rejected line crosses whole, as text, to the quarantine.
"""

# Shapes: L lines of the chunk, or those that are encoded, V values, F fields, W words, R records (context lines, runs).

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.chunks import line_columns, reasons
from pipeline.chunks.chunk import Chunk, numbers_of
from pipeline.chunks.sources import SKELETON
from pipeline.contexts import records
from pipeline.contexts.buckets import Buckets
from pipeline.contexts.packing import pack_words
from pipeline.contexts.records import CONTEXT_TAG, HEADER, RUN_TAG, Layout, record_batch
from pipeline.dataset.lookup_table import Lookup
from pipeline.kernels.jit import nb


def encode(
    chunk: Chunk, layout: Layout, lookup: Lookup, buckets: Buckets, actions: np.ndarray | None
) -> Iterator[pa.RecordBatch]:
    """Yield the records of a chunk, then its rejected lines; both as batches of RECORD_SCHEMA."""
    reason_L = chunk.parsed.line_table[:, line_columns.REASON]
    good = np.flatnonzero(reason_L == reasons.GOOD)
    if len(good):
        yield _records(chunk, good, layout, lookup, buckets, actions)
    bad = np.flatnonzero(reason_L)
    if len(bad):
        yield _reject_records(chunk, bad, buckets)


def _records(
    chunk: Chunk, good: np.ndarray, layout: Layout, lookup: Lookup, buckets: Buckets, actions: np.ndarray | None
) -> pa.RecordBatch:
    is_skeleton = chunk.source.table == SKELETON
    line_table = chunk.parsed.line_table
    if is_skeleton:
        order = good[np.argsort(line_table[good, line_columns.KEY], kind="stable")]
        key_L = line_table[order, line_columns.KEY]
        is_first = np.r_[True, key_L[1:] != key_L[:-1]]
    else:
        order, is_first = good, np.ones(len(good), np.bool_)
    label_L = _label_bits(line_table, order, actions) if is_skeleton else np.zeros(len(order), np.int64)
    word_W, begin_L = _encode(chunk, order, is_first, label_L, layout, lookup)
    first_R = np.flatnonzero(is_first)
    lines = order[first_R]
    bucket_R, hash_R = buckets.of_contexts(line_table[lines, line_columns.KEY], chunk.split_L[lines])
    columns = {
        "bucket": bucket_R,
        "hash": hash_R,
        "tag": np.full(len(lines), RUN_TAG if is_skeleton else CONTEXT_TAG, np.int8),
        "ordinal": np.full(len(lines), chunk.source.ordinal, np.int32),
        "offset": chunk.offset + line_table[lines, line_columns.START],
    }
    blob_bytes, begin_R = pack_words(word_W, begin_L[np.r_[first_R, len(order)]])
    return record_batch(columns, begin_R, blob_bytes)


def _label_bits(line_table: np.ndarray, order: np.ndarray, actions: np.ndarray | None) -> np.ndarray:
    """Return the label bits of the lines `order`; without a click, no conversion (ESMM eq. 3) and no daction."""
    raw_L = line_table[order, line_columns.LABEL_FLAGS]
    click_L = raw_L & line_columns.CLICK_BIT > 0
    label_L = click_L * records.CLICK_LABEL + (click_L & (raw_L & line_columns.BUY_BIT > 0)) * records.CONVERSION_LABEL
    label_L += (click_L & (raw_L & line_columns.DACTION_BIT > 0)) * records.DACTION_LABEL
    if actions is not None and len(actions):
        clicked = np.flatnonzero(click_L)
        sample_id = line_table[order[clicked], line_columns.SAMPLE_ID]
        found = np.minimum(np.searchsorted(actions, sample_id), len(actions) - 1)
        label_L[clicked[actions[found] == sample_id]] |= records.DACTION_LABEL
    return label_L


def _reject_records(chunk: Chunk, bad: np.ndarray, buckets: Buckets) -> pa.RecordBatch:
    line_table = chunk.parsed.line_table[bad]
    offset_N = chunk.offset + line_table[:, line_columns.START]
    columns = {
        "bucket": buckets.of_rejects(chunk.source.ordinal, offset_N),
        "hash": np.zeros(len(bad), np.int64),
        "tag": line_table[:, line_columns.REASON].astype(np.int8),
        "ordinal": np.full(len(bad), chunk.source.ordinal, np.int32),
        "offset": offset_N,
    }
    lines = [chunk.text[start:end] for start, end in line_table[:, [line_columns.START, line_columns.END]].tolist()]
    begin_R = np.cumsum([0, *(len(line) for line in lines)])
    return record_batch(columns, begin_R, np.frombuffer(b"".join(lines), np.uint8))


def _encode(
    chunk: Chunk, order: np.ndarray, is_first: np.ndarray, label_L: np.ndarray, layout: Layout, lookup: Lookup
) -> tuple[np.ndarray, np.ndarray]:
    """Encode the lines `order`; return (words, where each line begins, and the end)."""
    parsed, timestamp_L = chunk.parsed, chunk.timestamp_L
    assert layout.header == HEADER or timestamp_L is not None
    per_line = layout.header + len(layout.fields) + layout.num_numbers
    numbers = numbers_of(parsed, layout.number_places)
    word_W = np.empty(len(order) * per_line + 2 * len(parsed.id_V), np.int32)
    begin_L = np.empty(len(order) + 1, np.int64)
    times = np.empty(0, np.int64) if timestamp_L is None else timestamp_L
    indices = lookup.indices_of(parsed.field_V, parsed.id_V)
    _encode_lines(
        _Lines(parsed.line_table, order, is_first, label_L, times, numbers.view(np.int32)),
        _Values(parsed.field_V, parsed.id_V, indices, parsed.weight_V.view(np.int32)),
        _Places(layout.one_F, layout.many_F, layout.is_weighted, layout.header, len(layout.ones), layout.group),
        chunk.source.table == SKELETON, word_W, begin_L,
    )  # fmt: skip
    return word_W[: begin_L[-1]], begin_L


class _Lines(NamedTuple):
    """The lines of a chunk, and which of them to encode."""

    line_table: np.ndarray
    order: np.ndarray  # int64: the lines to encode
    is_first: np.ndarray  # bool, one for each of `order`: whether a run begins with the line
    label_L: np.ndarray  # int64, one for each of `order`
    timestamp_L: np.ndarray  # int64; empty where the log has none
    numbers: np.ndarray  # int32 [L, numbers]: the bits of float32


class _Values(NamedTuple):
    """The values of all lines of a chunk."""

    field_V: np.ndarray
    id_V: np.ndarray
    index_V: np.ndarray
    weight_bits_V: np.ndarray


class _Places(NamedTuple):
    """The places of the fields in a record (records.Layout)."""

    one_F: np.ndarray
    many_F: np.ndarray
    is_weighted: np.ndarray
    header: int
    num_ones: int
    group: int


@nb.njit(cache=True)
def _encode_lines(lines, values, places, is_skeleton, word_W, begin_L):  # type: ignore[no-untyped-def]
    # Unpacked before the loops: numba would count references for every access to an array of a tuple inside them.
    line_table, order, is_first, label_L, timestamp_L, numbers = lines
    field_V, id_V, index_V, weight_bits_V = values
    one_F, many_F, is_weighted, header, num_ones, group = places
    num_many, num_numbers = len(is_weighted), numbers.shape[1]
    value_at = np.empty(num_many, np.int64)  # where the next value of each multi-valued field goes
    weight_at = np.empty(num_many, np.int64)
    begin = 0
    run_start = 0
    for i in range(len(order)):
        line = order[i]
        first = line_table[line - 1, line_columns.VALUES_END] if line else 0
        last = line_table[line, line_columns.VALUES_END]
        # header | ones | numbers | lengths | values of all multi-valued fields | their weights
        lengths = begin + header + num_ones + num_numbers
        word_W[begin + header : lengths + num_many] = 0
        for number in range(num_numbers):
            word_W[begin + header + num_ones + number] = numbers[line, number]
        for v in range(first, last):  # count the values of each field, to know where each field begins
            many = many_F[field_V[v]]
            if many >= 0:
                word_W[lengths + many] += 1
        end = lengths + num_many
        for many in range(num_many):
            value_at[many] = end
            end += word_W[lengths + many]
        for many in range(num_many):
            if is_weighted[many]:
                weight_at[many] = end
                end += word_W[lengths + many]
        id_ = line_table[line, line_columns.SAMPLE_ID] if is_skeleton else np.int64(records.NO_GROUP_ID)
        for v in range(first, last):  # put each value into its place
            field = np.int64(field_V[v])
            many = many_F[field]
            if many < 0:
                if one_F[field] >= 0:
                    word_W[begin + header + one_F[field]] = index_V[v]
                if field == group:
                    id_ = id_V[v]
            else:
                word_W[value_at[many]] = index_V[v]
                value_at[many] += 1
                if is_weighted[many]:
                    word_W[weight_at[many]] = weight_bits_V[v]
                    weight_at[many] += 1
        if is_first[i]:
            run_start = line_table[line, line_columns.START]
        word_W[begin] = end - begin
        word_W[begin + records.ID_AT] = id_
        word_W[begin + records.ID_AT + 1] = id_ >> 32
        if is_skeleton:
            word_W[begin + records.OFFSET_AT] = line_table[line, line_columns.START] - run_start
            word_W[begin + records.LABELS_AT] = label_L[i]
            if header > HEADER:
                word_W[begin + records.TIME_AT] = timestamp_L[line]
                word_W[begin + records.TIME_AT + 1] = timestamp_L[line] >> 32
        else:
            word_W[begin + records.KEY_AT] = line_table[line, line_columns.KEY]
            word_W[begin + records.KEY_AT + 1] = line_table[line, line_columns.KEY] >> 32
        begin_L[i] = begin
        begin = end
    begin_L[len(order)] = begin
