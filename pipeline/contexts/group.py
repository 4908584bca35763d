"""Group: the records of a context, brought together by Spark's sort, become context rows of at most K impressions.

    sorted records ─whole_groups()─▶ whole groups ─select()─▶ which impressions make which row, which lines are rejected

A group is the first context line of its key and the impressions in the order of the log. Later context lines,
impressions without a context line and impressions whose id came before are rejected.
"""

# Shapes: R records, N rows, X rejected lines, W words.

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.chunks.reasons import DUPLICATE_CONTEXT, DUPLICATE_IMPRESSION, MISSING_CONTEXT
from pipeline.contexts import records
from pipeline.contexts.packing import unpack_words
from pipeline.contexts.records import CONTEXT_TAG, NUM_WORDS_AT
from pipeline.errors import InputError
from pipeline.kernels.hashing import mix
from pipeline.kernels.jit import nb

#: Columns of Selection.rejects.
ORDINAL, LINE_OFFSET, REJECT_REASON = range(3)
_MOST_BYTES = (1 << 31) - (64 << 20)  # of the records of a context, which become one Arrow array


@dataclass(frozen=True)
class Selection:
    """The rows of a batch of whole groups, as positions of records in `word_W`."""

    word_W: np.ndarray  # int32
    hash_N: np.ndarray  # int64, the context's order hash
    context_N: np.ndarray  # int64, where the context of a row begins
    first_N: np.ndarray  # int64, the row's first impression among `impressions`
    impressions: np.ndarray  # int64, where each impression of the rows begins
    rejects: np.ndarray  # int64 [X, 3]: ordinal of the file, offset of the line in it, reason
    num_contexts: int  # with one row or more
    num_contexts_alone: int  # without any impression line


def whole_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the sorted records again, cut between groups only: the last group of a batch waits for the next batch.

    Impressions without a context line do not wait, because each is rejected by itself. So memory stays small, even if
    a key that means "unknown" has a large part of the log. Raises InputError for a context with too many impressions.
    """
    waiting: list[pa.RecordBatch] = []
    num_bytes = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        hash_R = batch.column("hash").to_numpy()
        if waiting and waiting[-1].column("hash")[-1].as_py() != hash_R[0]:
            yield pa.concat_batches(waiting)
            waiting = []
        last = int(np.searchsorted(hash_R, hash_R[-1]))
        if last > 0:
            yield pa.concat_batches([*waiting, batch.slice(0, last)]) if waiting else batch.slice(0, last)
            waiting = []
        rest = batch.slice(last)
        if not waiting and rest.column("tag")[0].as_py() != CONTEXT_TAG:
            yield rest
            continue
        num_bytes = rest.column("blob").nbytes + (num_bytes if waiting else 0)
        waiting.append(rest)
        if num_bytes > _MOST_BYTES:
            raise InputError(_too_long(waiting[0]))
    if waiting:
        yield pa.concat_batches(waiting)


def _too_long(batch: pa.RecordBatch) -> str:
    blob = np.frombuffer(batch.column("blob")[0].as_py(), np.uint8)
    word_W, _ = unpack_words(blob, np.array([0, len(blob)]))
    key = int(int64_at(word_W, records.KEY_AT)) % (1 << 64)
    return (
        f"The context {key:016x} has more impressions than one context may have ({_MOST_BYTES >> 20} MB of packed "
        "records). If the key means that the context is unknown, give these impressions contexts of their own, or "
        "remove the key's line of common_features: then they go to quarantine as missing_context."
    )


def select(batch: pa.RecordBatch, max_impressions: int) -> Selection:
    """Cut the groups of a batch into rows, and reject the lines that break a rule of their group."""
    binary = batch.column("blob")
    _, offsets, data = binary.buffers()
    begin_R = np.frombuffer(offsets, np.int32, len(binary) + 1, 4 * binary.offset).astype(np.int64)
    blobs = np.frombuffer(data, np.uint8, begin_R[-1] - begin_R[0], begin_R[0])
    word_W, begin_R = unpack_words(blobs, begin_R - begin_R[0])
    hash_R = batch.column("hash").to_numpy()
    group_bounds = np.flatnonzero(np.r_[True, hash_R[1:] != hash_R[:-1], True])
    tag_R = batch.column("tag").to_numpy()
    num_R = _num_impressions(word_W, begin_R, tag_R)
    offset_R, ordinal_R = batch.column("offset").to_numpy(), batch.column("ordinal").to_numpy()
    num_impressions = int(num_R.sum())
    out = _Outputs(
        np.empty(num_impressions, np.int64),
        np.empty(num_impressions + 1, np.int64),
        np.empty(num_impressions, np.int64),
        np.empty((num_impressions + len(tag_R), 3), np.int64),
    )
    num_rows, num_kept, num_rejected, num_contexts, num_alone = _select(
        _Records(word_W, begin_R, tag_R, ordinal_R, offset_R, num_R), group_bounds, max_impressions, out
    )
    context_N = out.context_N[:num_rows]
    hash_N = hash_R[np.searchsorted(begin_R, context_N)]
    return Selection(
        word_W, hash_N, context_N, out.first_N[:num_rows], out.impressions[:num_kept],
        out.rejects[:num_rejected].copy(), num_contexts, num_alone,
    )  # fmt: skip


class _Records(NamedTuple):
    """The sorted records of whole groups."""

    word_W: np.ndarray
    begin_R: np.ndarray  # and the end
    tag_R: np.ndarray
    ordinal_R: np.ndarray
    offset_R: np.ndarray
    num_R: np.ndarray  # impressions of each


class _Outputs(NamedTuple):
    """Room for what Selection holds, as much as the records can need."""

    context_N: np.ndarray
    first_N: np.ndarray
    impressions: np.ndarray
    rejects: np.ndarray


@nb.njit(cache=True, inline="always")
def int64_at(word_W, position):  # type: ignore[no-untyped-def]
    """Read the 64 bits of two words, the lower one first."""
    return (np.int64(word_W[position + 1]) << 32) | (np.int64(word_W[position]) & 0xFFFFFFFF)


@nb.njit(cache=True)
def _num_impressions(word_W, begin_R, tag_R):  # type: ignore[no-untyped-def]
    num_R = np.zeros(len(tag_R), np.int64)
    for r in range(len(tag_R)):
        if tag_R[r] != CONTEXT_TAG:
            position = begin_R[r]
            while position < begin_R[r + 1]:
                num_R[r] += 1
                position += word_W[position + NUM_WORDS_AT]
    return num_R


@nb.njit(cache=True)
def _select(records_, group_bounds, max_impressions, out):  # type: ignore[no-untyped-def]
    """Fill `out`. Returns the numbers of rows, impressions kept, rejected lines, contexts with rows, contexts alone.

    records   | context | context | run of 3 | run of 2 | context | run …
    groups    |<------------ g ----------------------->|<----- g + 1 …      group_bounds: where each begins, and the end
              kept       rejected   rows of at most max_impressions
    """
    # Unpacked before the loops: numba would count references for every access to an array of a tuple inside them.
    word_W, begin_R, tag_R, ordinal_R, offset_R, num_R = records_
    context_N, first_N, impressions, rejects = out
    seen = np.empty(256, np.int64)  # a hash set of the impression ids of this group
    filled_by = np.full(256, -1, np.int64)  # the group that filled a slot, so that nothing need be cleared
    num_rows = num_kept = num_rejected = num_contexts = num_alone = 0
    for g in range(len(group_bounds) - 1):
        context = -1  # the word at which the group's context begins; the sort has put it first
        num_here = 0
        for r in range(group_bounds[g], group_bounds[g + 1]):
            num_here += num_R[r]
        while len(seen) < 2 * num_here:  # at least half of the slots stay empty, or probing gets long
            seen = np.empty(2 * len(seen), np.int64)
            filled_by = np.full(len(seen), -1, np.int64)
        in_row = max_impressions  # impressions of the row that is open; none is, so the first one opens one
        for r in range(group_bounds[g], group_bounds[g + 1]):
            if tag_R[r] == CONTEXT_TAG:
                if context < 0:
                    context = begin_R[r]
                    continue
                rejects[num_rejected, ORDINAL] = ordinal_R[r]
                rejects[num_rejected, LINE_OFFSET] = offset_R[r]
                rejects[num_rejected, REJECT_REASON] = DUPLICATE_CONTEXT
                num_rejected += 1
                continue
            position = begin_R[r]
            while position < begin_R[r + 1]:  # the impressions of a run, one behind the other
                reason = MISSING_CONTEXT
                if context >= 0:
                    id_ = int64_at(word_W, position + records.ID_AT)
                    reason = 0 if _is_new(seen, filled_by, id_, g) else DUPLICATE_IMPRESSION
                if reason:
                    rejects[num_rejected, ORDINAL] = ordinal_R[r]
                    rejects[num_rejected, LINE_OFFSET] = offset_R[r] + word_W[position + records.OFFSET_AT]
                    rejects[num_rejected, REJECT_REASON] = reason
                    num_rejected += 1
                else:
                    if in_row == max_impressions:
                        context_N[num_rows] = context
                        first_N[num_rows] = num_kept
                        num_rows += 1
                        in_row = 0
                    impressions[num_kept] = position
                    num_kept += 1
                    in_row += 1
                position += word_W[position + NUM_WORDS_AT]
        if context >= 0:
            num_contexts += num_here > 0
            num_alone += num_here == 0
    return num_rows, num_kept, num_rejected, num_contexts, num_alone


@nb.njit(cache=True)
def _is_new(seen, filled_by, id_, group):  # type: ignore[no-untyped-def]
    """Add an impression id to its group's set; return False if it was there."""
    slot = np.int64(mix(np.uint64(id_)) & np.uint64(len(seen) - 1))
    while filled_by[slot] == group:
        if seen[slot] == id_:
            return False
        slot = (slot + 1) & (len(seen) - 1)
    filled_by[slot] = group
    seen[slot] = id_
    return True
