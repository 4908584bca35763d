"""Samples: which impressions an epoch of AMAN, OVERSAMPLING or UNBIAS holds, and how often (ESMM §3.1).

Each impression has an expected number of copies, by its labels: AMAN gives one of 0.1 to the unclicked, OVERSAMPLING one of
5 to the converted. `Plan` counts with their sums, which the manifest's counts give without opening a file. From a row group
exactly as many are drawn as it plans, by systematic sampling (Madow 1949): the impressions stand in random order, each as
long as its expected copies, and one copy is drawn at ½, 1½, 2½, …

    expected     0.4   0.4   0.4   1     0.4   0.4       in the order of a hash of (seed, epoch, impression)
                ├─────┼─────┼─────┼────────┼─────┼─────┤
    sum S       0.3  0.7   1.1   1.5      2.5   2.9   3.3    from what the row groups before it leave over
    round(S)    0    1     1     2        3     3     3
    copies        1     0     1       1      0     0

So an impression's copies are one of the two whole numbers around its expectation. Over the epochs they average to it, up
to the rounding of its row group's sum. Nothing depends on the number of ranks. Copies of an impression follow each other in one batch, so their context is read and looked
up once; a copy shares its dropout mask, and acts as a weight.
"""

# Shapes: B impressions of a row group.

from collections.abc import Mapping

import numpy as np
import xxhash

from pipeline.kernels.hashing import order_hashes
from training.feed.plan import SAMPLE_BITS, Draw, whole_samples
from training.feed.settings import SamplingSettings

_ONE_SAMPLE = 1 << SAMPLE_BITS


def expected_by_counts(settings: SamplingSettings, impressions: int, clicks: int, conversions: int) -> int:
    """Return the samples that impressions of these counts are expected to give, in 2^-SAMPLE_BITS; none is rejected."""
    unclicked, clicked, converted = map(_fixed_point, settings.copies)
    return unclicked * (impressions - clicks) + clicked * (clicks - conversions) + converted * conversions


def _fixed_point(copies: float) -> int:
    return round(copies * _ONE_SAMPLE)


class Sampler:
    """Draws the samples of a row group, in any thread."""

    def __init__(self, settings: SamplingSettings, seed: int) -> None:
        self._copies = np.array([_fixed_point(copies) for copies in settings.copies], np.int64)
        self._seed = seed

    def expected(self, label_B: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return int64 [B]: the expected copies of each impression, in 2^-SAMPLE_BITS, by its labels (0 or 1)."""
        click_B = label_B["click"].astype(np.int64)
        return self._copies[click_B + click_B * label_B["conversion"]]

    def draw(
        self, epoch: int, draw: Draw, impression_id_B: np.ndarray, label_B: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Return int64 [B]: the copies of each impression in `epoch`. Their sum is `draw.num_samples` if the labels are the manifest's."""
        stream = xxhash.xxh3_64_intdigest(f"samples/{epoch}".encode(), self._seed & 0xFFFFFFFFFFFFFFFF)
        order_B = np.argsort(order_hashes(impression_id_B, stream), kind="stable")
        ends_B = draw.before + np.cumsum(self.expected(label_B)[order_B])
        copies_B = np.empty(len(order_B), np.int64)
        copies_B[order_B] = np.diff(whole_samples(ends_B), prepend=whole_samples(draw.before))
        return copies_B
