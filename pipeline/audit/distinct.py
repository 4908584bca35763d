"""How many distinct ids there are, and how many are common to two sets, from a bounded number of hashes.

The k smallest hashes of the distinct ids (Bar-Yossef et al. 2002; Beyer et al. 2007) merge in any order. Up to k distinct
ids they are all there and every count is exact; beyond, the k-th smallest tells how dense the hashes lie.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.kernels.hashing import order_hashes

#: Distinct ids up to which counts are exact; beyond, their relative standard error is 1 / √(MOST − 2), 0.55 %.
MOST = 1 << 15
_RANGE = 2.0**64
_SALT = 0x5EED  # another order than the rows', which would give a file the smallest hashes of all


@dataclass(frozen=True)
class Count:
    """A number of distinct ids."""

    number: int
    is_exact: bool

    def to_json(self) -> dict[str, Any]:
        """For audit.json."""
        return {"number": self.number, "exact": self.is_exact}


@dataclass
class Distinct:
    """The smallest hashes of the ids seen."""

    hash_K: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # sorted, at most MOST

    def add(self, id_N: np.ndarray) -> None:
        """See int64 ids, repeated or not."""
        self._insert(order_hashes(id_N, _SALT))

    def merge(self, other: "Distinct") -> None:
        """See another's ids."""
        self._insert(other.hash_K)

    def count(self) -> Count:
        """How many distinct ids were seen; (k − 1) / k-th smallest of hashes in [0, 1) beyond MOST."""
        if len(self.hash_K) < MOST:
            return Count(len(self.hash_K), True)
        return Count(round((MOST - 1) / (float(self.hash_K[-1]) / _RANGE)), False)

    def common(self, other: "Distinct") -> Count:
        """How many ids both have seen: among the smallest hashes of either, the share that stands in both."""
        both = Distinct(self.hash_K)
        both.merge(other)
        total = both.count()
        shared = np.intersect1d(self.hash_K, other.hash_K, assume_unique=True)
        if self.count().is_exact and other.count().is_exact:
            return Count(len(shared), True)
        num_shared = np.count_nonzero(np.isin(both.hash_K, shared, assume_unique=True))
        return Count(round(num_shared / len(both.hash_K) * total.number), False)

    def _insert(self, hash_N: np.ndarray) -> None:
        if len(self.hash_K) == MOST:
            hash_N = hash_N[hash_N < self.hash_K[-1]]
        if len(hash_N):
            self.hash_K = np.union1d(self.hash_K, hash_N)[:MOST]
