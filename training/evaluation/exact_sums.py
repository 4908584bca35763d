"""Sums that come to the same last digit for every order of the rows, number of ranks and number of threads.

Each term is rounded to a multiple of 2⁻⁵⁷ and added as an integer. The rounding is below 4·10⁻¹⁸ a term, so a mean of any
length is exact to 4·10⁻¹⁸ before its one rounding to a double. A sum lies in two int64: its units of 2³², and the rest.
"""

# Shapes: N impressions.

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.jit import nb

#: Probabilities are kept this far from 0 and 1 before a logarithm is taken.
LOG_LOSS_MARGIN = 1e-15
#: −ln of the margin is 34.5, and 34.5 · 2⁵⁷ is the largest term: it fits an int64.
_SCALE = 2.0**57
#: Numbers beyond ±LARGEST_TERM, such as a p_cvr that is a quotient of two networks, are added by math.fsum.
LARGEST_TERM = 32.0
_LOW = 0xFFFFFFFF


@nb.njit(nogil=True, cache=True)
def add_term(sums: NDArray[np.int64], row: int, term: float) -> None:
    """Add `term` to sums[row] = (units of 2³², rest)."""
    scaled = np.int64(np.rint(term * _SCALE))
    sums[row, 0] += scaled >> 32
    sums[row, 1] += scaled & _LOW


@nb.njit(nogil=True, cache=True)
def log_loss_of(target: float, probability: float) -> float:
    """Return −t ln p − (1 − t) ln(1 − p), p kept within [1e-15, 1 − 1e-15]."""
    p = min(max(probability, LOG_LOSS_MARGIN), 1.0 - LOG_LOSS_MARGIN)
    loss = 0.0
    if target != 0.0:
        loss -= target * math.log(p)
    if target != 1.0:
        loss -= (1.0 - target) * math.log1p(-p)
    return loss


@nb.njit(nogil=True, cache=True)
def _add_log_losses(sums: Any, target_N: Any, probability_N: Any) -> None:
    for row in range(len(probability_N)):
        add_term(sums, 0, log_loss_of(np.float64(target_N[row]), np.float64(probability_N[row])))


@nb.njit(nogil=True, cache=True)
def _add_values(sums: Any, value_N: Any) -> None:
    for row in range(len(value_N)):
        add_term(sums, 0, np.float64(value_N[row]))


class ExactSum:
    """A sum of terms, as an integer times 2⁻⁵⁷."""

    def __init__(self, units: int) -> None:
        self.units = units

    @classmethod
    def of(cls, pair: NDArray[np.int64]) -> "ExactSum":
        """Read what kernels added up in (units of 2³², rest)."""
        return cls((int(pair[0]) << 32) + int(pair[1]))

    def __float__(self) -> float:
        return self.over(1)

    def over(self, count: int) -> float:
        """Return the sum over `count`, rounded once."""
        return self.units / (int(_SCALE) * count)  # Python rounds a quotient of integers correctly


def log_loss_sum(target_N: NDArray[Any], probability_N: NDArray[Any]) -> ExactSum:
    """Sum the log losses of [N] probabilities against labels, or against true probabilities."""
    sums = np.zeros((1, 2), np.int64)
    _add_log_losses(sums, target_N, probability_N)
    return ExactSum.of(sums[0])


def sum_of(value_N: NDArray[Any]) -> ExactSum:
    """Sum finite numbers."""
    if len(value_N) and not (value_N.max() < LARGEST_TERM and value_N.min() > -LARGEST_TERM):
        return ExactSum(round(Fraction(math.fsum(value_N.tolist())) * int(_SCALE)))
    sums = np.zeros((1, 2), np.int64)
    _add_values(sums, value_N)
    return ExactSum.of(sums[0])
