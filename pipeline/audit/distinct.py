"""Counts of distinct ids, and of ids common to two sets, from a bounded number of hashes (a k-minimum-values sketch).

The k smallest hashes of the distinct ids (Bar-Yossef et al. 2002; Beyer et al. 2007) merge in any order. Up to k
distinct ids, all hashes are there and every count is exact. Beyond, the k-th smallest gives the density of the hashes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.kernels.hashing import order_hashes

#: Distinct ids up to which counts are exact; beyond, their relative standard error is 1 / √(MAX_EXACT − 2), 0.55 %.
MAX_EXACT = 1 << 15
_RANGE = 2.0**64
_SKETCH_SALT = 0x5EED  # another order than the rows', or one file would have the smallest hashes of all


@dataclass(frozen=True)
class Count:
    """A number of distinct ids."""

    number: int
    is_exact: bool

    def to_json(self) -> dict[str, Any]:
        """Return the count as audit.json holds it."""
        return {"number": self.number, "exact": self.is_exact}


@dataclass
class Distinct:
    """The smallest hashes of the ids seen."""

    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # sorted, at most MAX_EXACT

    def add(self, id_N: np.ndarray) -> None:
        """Add int64 ids, repeated or not."""
        self._insert(order_hashes(id_N, _SKETCH_SALT))

    def merge(self, other: "Distinct") -> None:
        """Add the ids of another sketch."""
        self._insert(other.hashes)

    def count(self) -> Count:
        """Count the distinct ids: beyond MAX_EXACT as (k − 1) / k-th smallest hash, hashes scaled to [0, 1)."""
        if len(self.hashes) < MAX_EXACT:
            return Count(len(self.hashes), True)
        return Count(round((MAX_EXACT - 1) / (float(self.hashes[-1]) / _RANGE)), False)

    def common(self, other: "Distinct") -> Count:
        """Count the ids of both: beyond MAX_EXACT by the share of the smallest hashes of either that stands in both."""
        both = Distinct(self.hashes)
        both.merge(other)
        total = both.count()
        shared = np.intersect1d(self.hashes, other.hashes, assume_unique=True)
        if self.count().is_exact and other.count().is_exact:
            return Count(len(shared), True)
        num_shared = np.count_nonzero(np.isin(both.hashes, shared, assume_unique=True))
        return Count(round(num_shared / len(both.hashes) * total.number), False)

    def _insert(self, hash_N: np.ndarray) -> None:
        if len(self.hashes) == MAX_EXACT:
            hash_N = hash_N[hash_N < self.hashes[-1]]
        if len(hash_N):
            self.hashes = np.union1d(self.hashes, hash_N)[:MAX_EXACT]
