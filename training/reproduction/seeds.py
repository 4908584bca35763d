"""Mean, deviation and paired test over the seeds of two systems.

The test is Student's paired t: a pair is one seed, which both systems had for their initial values and the order of their
data. It says whether training again would find the difference. It says nothing of other test rows: jobs.compare does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr


class SeedSummary(NamedTuple):
    """A figure over seeds; None where it is undefined."""

    mean: float | None
    std: float | None  # of a sample: over n − 1
    num_seeds: int  # with a figure


class PairedDifference(NamedTuple):
    """A mean difference over the seeds that both have."""

    mean: float | None
    p: float | None  # two-sided; None for fewer than two pairs
    num_pairs: int


def summarize_seeds(values: Sequence[float | None]) -> SeedSummary:
    """Summarize a figure over seeds; a seed whose figure is undefined is left out and not counted."""
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return SeedSummary(None, None, 0)
    return SeedSummary(float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None, len(known))


def paired_difference(values: Sequence[float | None], others: Sequence[float | None]) -> PairedDifference:
    """Compare two systems seed by seed: the mean of `values` less `others`, and p of the paired t-test."""
    pairs = [(one, other) for one, other in zip(values, others, strict=True) if one is not None and other is not None]
    if not pairs:
        return PairedDifference(None, None, 0)
    difference = np.array([one - other for one, other in pairs], np.float64)
    mean, num = float(difference.mean()), len(difference)
    if num < 2:
        return PairedDifference(mean, None, num)
    error = float(difference.std(ddof=1)) / np.sqrt(num)
    if error == 0.0:  # the same difference for every seed
        return PairedDifference(mean, 1.0 if mean == 0.0 else 0.0, num)
    return PairedDifference(mean, float(2.0 * stdtr(num - 1, -abs(mean) / error)), num)
