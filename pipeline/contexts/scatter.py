"""Scattered pieces (`rows.scatter_chunks`): the rows that a long context is cut into, each at a place of its own.

    records in the order of contexts ─select()─▶ rows ─scattered()─▶ records of one row each, shuffled again ─▶ the writer

A piece is a copy of its context's record and one run of at most K impressions. The first keeps the context's place in the
order; piece n goes to mix(hash + n·golden), like any other context. To the writer every piece is a context.
"""

# Shapes: N rows, which are pieces; R records, two a piece; I impressions; W words.

import pipeline.kernels.cache  # noqa: F401  (before numba: it chooses where kernels are kept)

# isort: split

from collections.abc import Iterator

import numba as nb
import numpy as np
import pyarrow as pa

from pipeline.contexts.buckets import Buckets
from pipeline.contexts.group import Selected
from pipeline.contexts.packing import packed
from pipeline.contexts.records import CONTEXT_TAG, NUM_WORDS, RUN_TAG, record_batch
from pipeline.kernels.hashing import mix

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TOP_BIT = np.uint64(1 << 63)
_WORDS_PER_BATCH = 4 << 20  # pieces repeat their context, which may be large


def scattered(selected: Selected, split: int, buckets: Buckets) -> Iterator[pa.RecordBatch]:
    """records.SCHEMA: the rows of `selected` as pieces."""
    first_N = np.r_[selected.first_N, len(selected.impression_I)]
    place_N = _places(selected.hash_N.view(np.uint64) ^ _TOP_BIT)
    words_2N = _num_words(selected.word_W, selected.context_N, first_N, selected.impression_I)
    starts = np.flatnonzero(np.diff(np.cumsum(words_2N.sum(axis=0)) // _WORDS_PER_BATCH, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(place_N)], strict=True):
        rows = slice(start, stop)
        begin_R = np.r_[0, np.cumsum(words_2N[:, rows].T.ravel())]
        word_W = np.empty(begin_R[-1], np.int32)
        chosen_N = selected.context_N[rows]
        _copy(selected.word_W, chosen_N, first_N[start : stop + 1], selected.impression_I, word_W)
        bucket_N, sorted_N = buckets.of_places(place_N[rows], np.full(stop - start, split))
        columns = {
            "bucket": np.repeat(bucket_N, 2),
            "hash": np.repeat(sorted_N, 2),
            "tag": np.tile(np.array([CONTEXT_TAG, RUN_TAG], np.int8), stop - start),
            # Where its lines stood has been reported already.
            "ordinal": np.zeros(2 * (stop - start), np.int32),
            "offset": np.zeros(2 * (stop - start), np.int64),
        }
        byte_B, packed_R = packed(word_W, begin_R)
        yield record_batch(columns, packed_R, byte_B)


@nb.njit(cache=True)
def _places(hash_N: np.ndarray) -> np.ndarray:
    """uint64: the order hash of each row; the rows of a context stand together, and its first keeps the context's."""
    place_N = hash_N.copy()
    number = np.uint64(0)
    for n in range(1, len(hash_N)):
        number = number + np.uint64(1) if hash_N[n] == hash_N[n - 1] else np.uint64(0)
        if number > 0:
            place_N[n] = mix(hash_N[n] + number * _GOLDEN)
    return place_N


@nb.njit(cache=True)
def _num_words(word_W, context_N, first_N, impression_I):  # type: ignore[no-untyped-def]
    """int64 [2, N]: the words of each row's context, and of its impressions."""
    words_2N = np.zeros((2, len(context_N)), np.int64)
    for n in range(len(context_N)):
        words_2N[0, n] = word_W[context_N[n] + NUM_WORDS]
        for i in range(first_N[n], first_N[n + 1]):
            words_2N[1, n] += word_W[impression_I[i] + NUM_WORDS]
    return words_2N


@nb.njit(cache=True)
def _copy(word_W, context_N, first_N, impression_I, out_W):  # type: ignore[no-untyped-def]
    """out_W: of each row its context's record, then those of its impressions."""
    at = 0
    for n in range(len(context_N)):
        for i in range(first_N[n] - 1, first_N[n + 1]):
            begin = context_N[n] if i < first_N[n] else impression_I[i]
            for word in range(word_W[begin + NUM_WORDS]):
                out_W[at + word] = word_W[begin + word]
            at += word_W[begin + NUM_WORDS]
