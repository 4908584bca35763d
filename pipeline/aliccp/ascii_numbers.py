"""Parse the numbers of a log from its bytes: integers, keys and weights.

There are two code paths that agree. Nearly all numbers are short, and are read eight bytes at a time without a branch
(`first_byte`, `digits`). `integer` and `number` read any number, byte by byte.

The text is an address, and the caller keeps the memory alive. With arrays as arguments numba counts references in every
call, which took more time than the numbers.

    "382143\\x03…" ─word_at─▶ one uint64, its first byte lowest ─first_byte(\\x03)─▶ 6 ─digits─▶ 382143
"""

from typing import Any

import numpy as np
from llvmlite import ir

from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import WORD_BYTES, byte_at, word_at

#: Bytes of the text.
DOT, ZERO = 46, 48
_MINUS, _PLUS = 45, 43
_MAX_INT64 = np.iinfo(np.int64).max
_MAX_FLOAT32 = float(np.finfo(np.float32).max) + 2.0**103  # rounds to infinity from here on (half a step above)
_MAX_SHORT = 2**53 // 10 - 1  # one more digit stays below 2^53

POWERS = 10.0 ** np.arange(23)  # exact in a double up to 10^22
# libc's correctly rounded parser, for the few weights that the exact short path below cannot do.
_strtod = nb.types.ExternalFunction("strtod", nb.types.float64(nb.types.intp, nb.types.intp))

#: Times a byte: that byte in all eight of a word.
IN_EACH_BYTE = 0x0101010101010101
_ONES, _TOPS = np.uint64(IN_EACH_BYTE), np.uint64(0x80 * IN_EACH_BYTE)
_ZEROS, _OVER_NINE = np.uint64(ZERO * IN_EACH_BYTE), np.uint64(0x76 * IN_EACH_BYTE)
_LETTER_GAP, _SIX, _HIGH_NIBBLES = (
    np.uint64(ord("a") - ord("9") - 1),
    np.uint64(6 * IN_EACH_BYTE),
    np.uint64(0xF0 * IN_EACH_BYTE),
)
_PAIRS, _QUADS = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
_TEN, _HUNDRED, _MYRIAD = np.uint64(1 + (10 << 8)), np.uint64(1 + (100 << 16)), np.uint64(1 + (10_000 << 32))


@nb.extending.intrinsic
def _trailing_zeros(typing: Any, word: Any) -> Any:
    """Count the lowest bits that are 0; 64 for the word 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return nb.types.uint64(nb.types.uint64), generate


@nb.njit(cache=True, inline="always")
def first_byte(word, byte):  # type: ignore[no-untyped-def]
    """Find where `byte`, given in all eight bytes of a word, stands first in `word`; 8 if nowhere."""
    other = word ^ byte
    # The lowest top bit that is left marks the first byte that is 0 (Mycroft 1987); those above it may be wrong.
    return np.int64(_trailing_zeros((other - _ONES) & ~other & _TOPS) >> np.uint64(3))


@nb.njit(cache=True, inline="always")
def first_below(word, bound):  # type: ignore[no-untyped-def]
    """Find where a byte below `bound`, at most 128 and given in all eight bytes, stands first; 8 if nowhere."""
    return np.int64(_trailing_zeros((word - bound) & ~word & _TOPS) >> np.uint64(3))


@nb.njit(cache=True, inline="always")
def digits(word, length):  # type: ignore[no-untyped-def]
    """Parse the first `length` bytes of a word, 1 to 8: return (number, a word that is 0 if all of them are digits).

    Pairs of digits, then pairs of pairs, in three multiplications (Langdale and Lemire, "Quickly parsing eight
    digits").
    """
    missing = np.uint64(
        (WORD_BYTES - length) & 7
    )  # the mask: a shift by 64 has no meaning, wherever `length` came from
    digit = (word ^ _ZEROS) << (missing << np.uint64(3))  # zeros in front, as many as are missing
    wrong = (digit | (digit + _OVER_NINE)) & _TOPS
    digit = ((digit * _TEN) >> np.uint64(8)) & _PAIRS
    digit = ((digit * _HUNDRED) >> np.uint64(16)) & _QUADS
    return (digit * _MYRIAD) >> np.uint64(32), wrong


@nb.njit(cache=True, inline="always")
def hex_digits(word):  # type: ignore[no-untyped-def]
    """Parse eight lower-case hex digits: return (32 bits, a word that is 0 if all of them are hex digits)."""
    is_letter = (word >> np.uint64(6)) & _ONES
    digit = word - is_letter * _LETTER_GAP  # "0" to "9" and "a" to "f" become 0x30 to 0x3F
    wrong = (digit & _HIGH_NIBBLES) ^ _ZEROS
    digit &= ~_HIGH_NIBBLES
    wrong |= (((digit + _SIX) >> np.uint64(4)) & _ONES) ^ is_letter  # ":" and "`" would pass for 10 and 9
    digit = ((digit << np.uint64(4)) | (digit >> np.uint64(8))) & _PAIRS
    digit = ((digit << np.uint64(8)) | (digit >> np.uint64(16))) & _QUADS
    return ((digit << np.uint64(16)) | (digit >> np.uint64(32))) & np.uint64(0xFFFFFFFF), wrong


@nb.njit(cache=True, inline="always")
def short_integer(word, stop):  # type: ignore[no-untyped-def]
    """Parse 1 to 7 digits before the byte `stop`: return (value, length, whether `word` begins with that)."""
    length = first_byte(word, stop)
    value, wrong = digits(word, length)
    return np.int64(value), length, (wrong == 0) & (length >= 1) & (length <= 7)


@nb.njit(cache=True)
def integer(text, position, signed):  # type: ignore[no-untyped-def]
    """Parse decimal digits that fit int64: return (value, position behind it), or (0, -1)."""
    negative = signed and byte_at(text, position) == _MINUS
    if negative:
        position += 1
    first = position
    value = 0
    while True:
        digit = byte_at(text, position) - ZERO
        if digit < 0 or digit > 9:
            break
        if position - first >= 18 and value > (_MAX_INT64 - digit) // 10:
            return 0, -1
        value = value * 10 + digit
        position += 1
    if position == first:
        return 0, -1
    return (-value if negative else value), position


@nb.njit(cache=True, inline="always")
def key(text, position):  # type: ignore[no-untyped-def]
    """Parse 16 lower-case hex digits: return (64 bits, position behind them), or (0, -1). 16 bytes must be there."""
    high, wrong = hex_digits(word_at(text, position))
    low, wrong_too = hex_digits(word_at(text, position + WORD_BYTES))
    if wrong | wrong_too:
        return 0, -1
    return np.int64((high << np.uint64(32)) | low), position + 2 * WORD_BYTES


@nb.njit(cache=True)
def number(text, position):  # type: ignore[no-untyped-def]
    """Parse a decimal number: return (float32, position behind it), or (0, -1).

    The double nearest to the text, rounded to float32. Up to 2^53 with a power of ten up to 22 both operands are exact
    doubles, so one division or product rounds once (Clinger 1990); the rest is libc's.
    """
    first = position
    negative = byte_at(text, position) == _MINUS
    if negative or byte_at(text, position) == _PLUS:
        position += 1
    whole = position
    mantissa, is_short, position = _mantissa(text, position, 0, True)
    num_digits, exponent = position - whole, 0
    if byte_at(text, position) == DOT:
        whole = position + 1
        mantissa, is_short, position = _mantissa(text, whole, mantissa, is_short)
        num_digits += position - whole
        exponent = whole - position
    if num_digits == 0:
        return np.float32(0), -1
    if byte_at(text, position) == 101 or byte_at(text, position) == 69:  # e, E
        power, position = _exponent(text, position + 1)
        if position < 0:
            return np.float32(0), -1
        exponent += power
    if is_short and -22 <= exponent <= 22:
        value = mantissa / POWERS[-exponent] if exponent < 0 else mantissa * POWERS[exponent]
        value = -value if negative else value
    else:
        value = _strtod(text + first, 0)
    if not abs(value) < _MAX_FLOAT32:
        return np.float32(0), -1
    return np.float32(value), position


@nb.njit(cache=True)
def _mantissa(text, position, mantissa, is_short):  # type: ignore[no-untyped-def]
    """Append the digits from `position` on: return (mantissa, whether it is still exact, position behind them)."""
    while True:
        digit = byte_at(text, position) - ZERO
        if digit < 0 or digit > 9:
            return mantissa, is_short, position
        is_short &= mantissa <= _MAX_SHORT
        mantissa = mantissa * 10 + digit
        position += 1


@nb.njit(cache=True)
def _exponent(text, position):  # type: ignore[no-untyped-def]
    """Parse a signed exponent: return (exponent, at most 100,000 in size, position behind it), or (0, -1)."""
    negative = byte_at(text, position) == _MINUS
    if negative or byte_at(text, position) == _PLUS:
        position += 1
    first = position
    value = 0
    while 48 <= byte_at(text, position) <= 57:
        value = min(value * 10 + byte_at(text, position) - ZERO, 100_000)
        position += 1
    if position == first:
        return 0, -1
    return (-value if negative else value), position
