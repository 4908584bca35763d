"""The fingerprint of a text: the sum of the hashes of its lines, each hashed with its offset in the file.

A sum does not depend on where a file is cut into splits and chunks, so every reader of the same bytes comes to the
same one. Each step is a bijection of its lane, so a line that differs in one word always has another hash.

    a line    word word word word │ word word word word │ word word │ 0-7 bytes, their number above them
    lanes      a    b    c    d      a    b    c    d      a    a      a
"""

import numpy as np

from pipeline.kernels.hashing import GOLDEN, MULTIPLIERS, mix
from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import WORD_BYTES, byte_at, word_at

_BLOCK_BYTES = 4 * WORD_BYTES
_STEP, _LANE = np.uint64(MULTIPLIERS[0]), np.uint64(GOLDEN)
_EIGHT, _HALF, _TOP = np.uint64(8), np.uint64(32), np.uint64(56)


def line_fingerprint(text: bytes, start_L: np.ndarray, offset: int) -> int:
    """Return the fingerprint of `text`: whole lines, whose first byte is `offset` of the file, that begin at `start_L`."""
    address = np.frombuffer(text, np.uint8).ctypes.data
    return int(_sum_of_lines(address, len(text), start_L, np.uint64(offset)))


@nb.njit(cache=True, inline="always")
def _add_word(lane, word):  # type: ignore[no-untyped-def]
    lane = (lane ^ word) * _STEP
    return lane ^ (lane >> _HALF)


@nb.njit(cache=True)
def _sum_of_lines(text, num_bytes, start_L, offset):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    for line in range(len(start_L)):
        position = np.int64(start_L[line])
        end = np.int64(start_L[line + 1]) if line + 1 < len(start_L) else num_bytes
        a = mix(offset + np.uint64(position) + _LANE)
        b, c, d = a + _LANE, a + _LANE * np.uint64(2), a + _LANE * np.uint64(3)
        while position + _BLOCK_BYTES <= end:
            a = _add_word(a, word_at(text, position))
            b = _add_word(b, word_at(text, position + WORD_BYTES))
            c = _add_word(c, word_at(text, position + 2 * WORD_BYTES))
            d = _add_word(d, word_at(text, position + 3 * WORD_BYTES))
            position += _BLOCK_BYTES
        while position + WORD_BYTES <= end:
            a = _add_word(a, word_at(text, position))
            position += WORD_BYTES
        rest = np.uint64(end - position) << _TOP
        for place in range(end - position):
            rest |= np.uint64(byte_at(text, position + place)) << (_EIGHT * np.uint64(place))
        a = _add_word(a, rest)
        total += mix(a ^ mix(b ^ mix(c ^ mix(d))))
    return total
