"""Contexts: the records of a context, brought together by Spark's sort, become context rows of at most K impressions.

    sorted records ─grouped()─▶ whole groups ─select()─▶ which impressions make which row, and which lines are rejected

A group is the first context line of its key and the impressions in the order of the log. Later context lines,
impressions without a context line and impressions whose id came before are rejected.
"""

# Shapes: R records, G groups, I impressions kept, N rows, X rejected lines, W words.

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.chunks.reasons import DUPLICATE_CONTEXT, DUPLICATE_IMPRESSION, MISSING_CONTEXT
from pipeline.contexts import records
from pipeline.contexts.packing import unpack_words
from pipeline.contexts.records import CONTEXT_TAG, NUM_WORDS
from pipeline.errors import InputError
from pipeline.kernels.hashing import mix
from pipeline.kernels.jit import nb

#: Columns of Selected.rejects.
ORDINAL, LINE_OFFSET, REJECT_REASON = range(3)
_MOST_BYTES = (1 << 31) - (64 << 20)  # of the records of a context, which become one Arrow array


@dataclass(frozen=True)
class Selected:
    """Rows of whole groups, as positions of records in `word_W`."""

    word_W: np.ndarray  # int32
    hash_N: np.ndarray  # int64, the context's place in the order
    context_N: np.ndarray  # int64, where the context of a row begins
    first_N: np.ndarray  # int64, the row's first impression in impression_I
    impression_I: np.ndarray  # int64, where an impression begins
    rejects: np.ndarray  # int64 [X, 3]: ordinal of the file, offset of the line in it, reason
    num_contexts: int  # with one row or more
    num_contexts_alone: int  # without any impression line


def grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The sorted records again, cut between groups only: the last group of a batch waits for the next.

    Impressions without a context line do not wait, for each is rejected by itself: a key that stands for "unknown" may
    have a large share of a log. InputError for a context that is too long to be held.
    """
    held: list[pa.RecordBatch] = []
    num_bytes = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        hash_R = batch.column("hash").to_numpy()
        if held and held[-1].column("hash")[-1].as_py() != hash_R[0]:
            yield pa.concat_batches(held)
            held = []
        last = int(np.searchsorted(hash_R, hash_R[-1]))
        if last > 0:
            yield pa.concat_batches([*held, batch.slice(0, last)]) if held else batch.slice(0, last)
            held = []
        rest = batch.slice(last)
        if not held and rest.column("tag")[0].as_py() != CONTEXT_TAG:
            yield rest
            continue
        num_bytes = rest.column("blob").nbytes + (num_bytes if held else 0)
        held.append(rest)
        if num_bytes > _MOST_BYTES:
            raise InputError(_too_long(held[0]))
    if held:
        yield pa.concat_batches(held)


def _too_long(batch: pa.RecordBatch) -> str:
    byte_B = np.frombuffer(batch.column("blob")[0].as_py(), np.uint8)
    word_W, _ = unpack_words(byte_B, np.array([0, len(byte_B)]))
    key = int(wide(word_W, records.KEY)) % (1 << 64)
    return (
        f"The context {key:016x} has more impressions than one context may have ({_MOST_BYTES >> 20} MB of packed records): "
        "is it a key that stands for none? Give these impressions contexts of their own, or remove its line of "
        "common_features, and they go to quarantine as missing_context."
    )


def select(batch: pa.RecordBatch, max_impressions: int) -> Selected:
    """Apply the rules of a group to a batch of whole groups."""
    binary = batch.column("blob")
    _, offsets, data = binary.buffers()
    begin_R = np.frombuffer(offsets, np.int32, len(binary) + 1, 4 * binary.offset).astype(np.int64)
    byte_B = np.frombuffer(data, np.uint8, begin_R[-1] - begin_R[0], begin_R[0])
    word_W, begin_R = unpack_words(byte_B, begin_R - begin_R[0])
    hash_R = batch.column("hash").to_numpy()
    first_G = np.flatnonzero(np.r_[True, hash_R[1:] != hash_R[:-1], True])
    tag_R, ordinal_R = batch.column("tag").to_numpy(), batch.column("ordinal").to_numpy()
    num_R = _num_impressions(word_W, begin_R, tag_R)
    num_impressions, num_records = int(num_R.sum()), len(tag_R)
    context_N, first_N = np.empty(num_impressions, np.int64), np.empty(num_impressions + 1, np.int64)
    impression_I = np.empty(num_impressions, np.int64)
    rejects = np.empty((num_impressions + num_records, 3), np.int64)
    num_rows, num_kept, num_rejected, num_contexts, num_alone = _select(
        word_W, begin_R, tag_R, ordinal_R, batch.column("offset").to_numpy(), first_G, num_R, max_impressions,
        context_N, first_N, impression_I, rejects,
    )  # fmt: skip
    hash_N = hash_R[np.searchsorted(begin_R, context_N[:num_rows])]
    return Selected(
        word_W, hash_N, context_N[:num_rows], first_N[:num_rows], impression_I[:num_kept],
        rejects[:num_rejected].copy(), num_contexts, num_alone,
    )  # fmt: skip


@nb.njit(cache=True, inline="always")
def wide(word_W, position):  # type: ignore[no-untyped-def]
    """The 64 bits of two words, the lower one first."""
    return (np.int64(word_W[position + 1]) << 32) | (np.int64(word_W[position]) & 0xFFFFFFFF)


@nb.njit(cache=True)
def _num_impressions(word_W, begin_R, tag_R):  # type: ignore[no-untyped-def]
    num_R = np.zeros(len(tag_R), np.int64)
    for r in range(len(tag_R)):
        if tag_R[r] != CONTEXT_TAG:
            position = begin_R[r]
            while position < begin_R[r + 1]:
                num_R[r] += 1
                position += word_W[position + NUM_WORDS]
    return num_R


@nb.njit(cache=True)
def _select(  # type: ignore[no-untyped-def]
    word_W, begin_R, tag_R, ordinal_R, offset_R, first_G, num_R, max_impressions,
    context_N, first_N, impression_I, rejects,
):  # fmt: skip
    """Fill the outputs. Returns the numbers of rows, impressions kept, rejected lines, contexts with rows, contexts alone.

    records   | context | context | run of 3 | run of 2 | context | run …
    groups    |<------------ g ----------------------->|<----- g + 1 …      first_G: where each begins among the records
              kept       rejected   rows of at most max_impressions
    """
    seen = np.empty(256, np.int64)  # a hash set of the impression ids of this group
    filled_by = np.full(256, -1, np.int64)  # the group that filled a slot, so that nothing need be cleared
    num_rows = num_kept = num_rejected = num_contexts = num_alone = 0
    for g in range(len(first_G) - 1):
        context = -1  # the word at which the group's context begins; the sort has put it first
        num_here = 0
        for r in range(first_G[g], first_G[g + 1]):
            num_here += num_R[r]
        while len(seen) < 2 * num_here:  # at least half of the slots stay empty, or probing gets long
            seen = np.empty(2 * len(seen), np.int64)
            filled_by = np.full(len(seen), -1, np.int64)
        in_row = max_impressions  # impressions of the row that is open; none is, so the first one opens one
        for r in range(first_G[g], first_G[g + 1]):
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
                    id_ = wide(word_W, position + records.ID)
                    reason = 0 if _is_new(seen, filled_by, id_, g) else DUPLICATE_IMPRESSION
                if reason:
                    rejects[num_rejected, ORDINAL] = ordinal_R[r]
                    rejects[num_rejected, LINE_OFFSET] = offset_R[r] + word_W[position + records.OFFSET]
                    rejects[num_rejected, REJECT_REASON] = reason
                    num_rejected += 1
                else:
                    if in_row == max_impressions:
                        context_N[num_rows] = context
                        first_N[num_rows] = num_kept
                        num_rows += 1
                        in_row = 0
                    impression_I[num_kept] = position
                    num_kept += 1
                    in_row += 1
                position += word_W[position + NUM_WORDS]
        if context >= 0:
            num_contexts += num_here > 0
            num_alone += num_here == 0
    return num_rows, num_kept, num_rejected, num_contexts, num_alone


@nb.njit(cache=True)
def _is_new(seen, filled_by, id_, group):  # type: ignore[no-untyped-def]
    """Enter an impression id into its group's set; False if it was there."""
    slot = np.int64(mix(np.uint64(id_)) & np.uint64(len(seen) - 1))
    while filled_by[slot] == group:
        if seen[slot] == id_:
            return False
        slot = (slot + 1) & (len(seen) - 1)
    filled_by[slot] = group
    seen[slot] = id_
    return True
