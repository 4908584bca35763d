"""Many decimal texts → int64 in one pass over their bytes, for the ids of a request."""

import numpy as np

from pipeline.kernels.jit import nb

_END_OF_TEXT, _DIGIT_ZERO = 10, 48
_MOST_DIGITS = 18  # these fit int64, whatever they are


def parse_decimals(texts: list[str], may_begin_with_zero: bool) -> np.ndarray | None:
    """Return int64 [N]; None unless each is 1 to 18 of the digits 0 to 9, without a zero in front unless that may be.

    Raises TypeError where one is no str.
    """
    joined = "\n".join(texts)
    if not texts or not joined.isascii():
        return None if texts else np.empty(0, np.int64)
    number_N = np.empty(len(texts), np.int64)
    count = _fill_decimals(np.frombuffer(joined.encode(), np.uint8), may_begin_with_zero, number_N)
    return number_N if count == len(texts) else None


@nb.njit(cache=True)
def _fill_decimals(text: np.ndarray, may_begin_with_zero: bool, number_N: np.ndarray) -> int:
    """Fill `number_N`; return how many numbers there are, or -1 where a text is none."""
    count = digits = 0
    number = np.int64(0)
    for place in range(len(text) + 1):
        byte = text[place] if place < len(text) else np.uint8(_END_OF_TEXT)
        if byte == _END_OF_TEXT:
            if digits == 0 or digits > _MOST_DIGITS or count == len(number_N):
                return -1
            number_N[count] = number
            count += 1
            digits = 0
            number = np.int64(0)
        else:
            digit = np.int64(byte) - _DIGIT_ZERO
            if digit < 0 or digit > 9 or (digits == 1 and number == 0 and not may_begin_with_zero):
                return -1
            number = number * 10 + digit
            digits += 1
    return count
