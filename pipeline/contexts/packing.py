"""Packing: the words of a record in fewer bytes while they cross Spark, where half of the CPU time goes by the byte.

    blob   data bytes …  codes, four to a byte …  number of words (int64)

A word has a code of two bits: how many data bytes it has. None where it repeats the word before (weights mostly do),
else 1, 2 or 4, the lowest first. The number of words stands last, so that a read of eight bytes never leaves the blob.
"""

# Shapes: R records, W words.

import numpy as np

from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import WORD_BYTES, byte_at, put_word, word_at

_LENGTHS = np.array([0, 1, 2, 4])
_MASKS = np.array([0, 0xFF, 0xFFFF, 0xFFFFFFFF])


def pack_words(word_W: np.ndarray, begin_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack records; return (uint8 bytes, where each blob begins).

    `begin_R` and its counterpart for the blobs have one more entry, the end.
    """
    num_records = len(begin_R) - 1
    blob_bytes = np.empty(5 * len(word_W) + 3 * WORD_BYTES * (num_records + 1), np.uint8)
    packed_R = np.empty(num_records + 1, np.int64)
    _pack_records(word_W, begin_R, blob_bytes.ctypes.data, packed_R)
    return blob_bytes[: packed_R[-1]], packed_R


def unpack_words(blob_bytes: np.ndarray, begin_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack the blobs that begin at the bytes `begin_R`; return what `pack_words` took."""
    word_R = _first_words(blob_bytes.ctypes.data, begin_R)
    word_W = np.empty(word_R[-1], np.int32)
    _unpack_records(blob_bytes.ctypes.data, begin_R, word_R, word_W)
    return word_W, word_R


@nb.njit(cache=True)
def _pack_records(word_W, begin_R, out, packed_R):  # type: ignore[no-untyped-def]
    at = 0
    for r in range(len(begin_R) - 1):
        packed_R[r] = at
        number = begin_R[r + 1] - begin_R[r]
        # The codes wait where no data of this record can reach, with a word between that the last data may overwrite.
        codes = at + 4 * number + WORD_BYTES
        num_codes = (number + 3) >> 2
        before = np.int64(0)
        code_word = np.int64(0)
        for i in range(number):
            word = np.int64(word_W[begin_R[r] + i]) & 0xFFFFFFFF
            is_new = np.int64(word != before)
            put_word(out, at, word)  # all of it: the next one overwrites what is not meant
            at += is_new * (1 + (word > 0xFF) + 2 * (word > 0xFFFF))
            code_word |= (is_new * (1 + (word > 0xFF) + (word > 0xFFFF))) << (2 * (i & 3))
            if i & 3 == 3 or i == number - 1:
                put_word(out, codes + (i >> 2), code_word)
                code_word = np.int64(0)
            before = word
        for i in range(0, num_codes, WORD_BYTES):  # move the codes down behind the data
            put_word(out, at + i, np.int64(word_at(out, codes + i)))
        at += num_codes
        put_word(out, at, number)
        at += WORD_BYTES
    packed_R[len(begin_R) - 1] = at


@nb.njit(cache=True)
def _first_words(blobs, begin_R):  # type: ignore[no-untyped-def]
    word_R = np.zeros(len(begin_R), np.int64)
    for r in range(len(begin_R) - 1):
        word_R[r + 1] = word_R[r] + np.int64(word_at(blobs, begin_R[r + 1] - WORD_BYTES))
    return word_R


@nb.njit(cache=True)
def _unpack_records(blobs, begin_R, word_R, word_W):  # type: ignore[no-untyped-def]
    for r in range(len(begin_R) - 1):
        at, to = begin_R[r], word_R[r]
        number = word_R[r + 1] - to
        codes = begin_R[r + 1] - WORD_BYTES - ((number + 3) >> 2)
        before = np.int64(0)
        for i in range(number):
            code = (byte_at(blobs, codes + (i >> 2)) >> (2 * (i & 3))) & 3
            word = np.int64(word_at(blobs, at)) & _MASKS[code]
            before = before if code == 0 else word
            at += _LENGTHS[code]
            word_W[to + i] = before
