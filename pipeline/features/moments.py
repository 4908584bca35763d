"""Numeric and dense fields: the numbers of each line, and the mean and standard deviation that a model scales it by.

    values of a line ─numbers_of()─▶ float32 [L, numbers], NaN where missing ─Moments─▶ µ and σ over the train split

The moments are exact: Σv and Σv² of float32 are kept as integers, one of each for every binary exponent, so that they are
the same in whatever order tasks add theirs, and only the last step rounds.
"""

# Shapes: L lines, V values, F fields of the catalogue.

import math
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.kernels.jit import nb

_EXPONENTS = 256  # of a float32
#: Columns of the sums of an exponent e. A float32 is ±m · 2^(e - 150) with an integer m below 2^24, and int64 holds
#: 2^39 such m; m² is summed in halves of 24 bits.
_COUNT, _SUM, _SQUARES_LOW, _SQUARES_HIGH = range(4)
_MANTISSA_BITS, _SMALLEST = 24, 149  # 2^-149 is the smallest float32 above 0


class Moments:
    """The count, the sum and the sum of squares of several columns of numbers; exact."""

    def __init__(self, num_numbers: int) -> None:
        self._sums = np.zeros((num_numbers, _EXPONENTS, 4), np.int64)

    def add(self, numbers: np.ndarray) -> None:
        """Add float32 [L, columns]; NaN is no number."""
        _add(numbers.view(np.int32), self._sums)

    def to_bytes(self) -> bytes:
        """Serialize (column, exponent, sums) of the exponents that occurred, for the way from a task to the driver."""
        field_R, exponent_R = np.nonzero(self._sums[:, :, _COUNT])
        rows = np.column_stack([field_R, exponent_R, self._sums[field_R, exponent_R]])
        return rows.astype(np.int64).tobytes()

    def merge(self, blob: Any) -> None:
        """Add what to_bytes() of another returned."""
        rows = np.frombuffer(blob, np.int64).reshape(-1, 6)
        self._sums[rows[:, 0], rows[:, 1]] += rows[:, 2:]

    def mean_std(self, place: int) -> tuple[float, float]:
        """Return (mean, population standard deviation) of one column: (0, 0) without a number, std 0 for a constant."""
        by_exponent = self._sums[place].tolist()
        number = sum(sums[_COUNT] for sums in by_exponent)
        if not number:
            return 0.0, 0.0
        total = squares = 0  # in units of 2^-149 and of 2^-298
        for exponent, (_, mantissas, low, high) in enumerate(by_exponent):
            shift = max(exponent, 1) - 1  # subnormal numbers have the scale of the first exponent
            total += mantissas << shift
            squares += (low + (high << _MANTISSA_BITS)) << 2 * shift
        mean = Fraction(total, number << _SMALLEST)
        variance = Fraction(number * squares - total * total, number * number << 2 * _SMALLEST)
        return float(mean), math.sqrt(variance)


@nb.njit(cache=True)
def _add(float_bits, all_sums):  # type: ignore[no-untyped-def]
    for line in range(len(float_bits)):
        for place in range(float_bits.shape[1]):
            bits = np.int64(float_bits[line, place])
            exponent = (bits >> 23) & 255
            if exponent == 255:  # NaN: missing
                continue
            mantissa = bits & 0x7FFFFF
            if exponent > 0:
                mantissa |= 1 << 23
            square = mantissa * mantissa
            sums = all_sums[place, exponent]
            sums[_COUNT] += 1
            sums[_SUM] += -mantissa if bits < 0 else mantissa
            sums[_SQUARES_LOW] += square & 0xFFFFFF
            sums[_SQUARES_HIGH] += square >> _MANTISSA_BITS
