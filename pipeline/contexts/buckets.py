"""Buckets: the output file of a context, by its split and a range of its order hash.

The numbers of files follow from the counts of the first pass, so they depend on the data and the settings alone.
"""

# Shapes: N contexts or rejected lines.

import math
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.manifest import SPLITS
from pipeline.kernels.hashing import order_hashes, scale_hashes
from pipeline.spark.hashes import partition_keys

LINES_PER_QUARANTINE_FILE = 1_000_000


@dataclass(frozen=True)
class Buckets:
    """The output files in manifest order, the quarantine of unreadable lines last.

    Spark's hash partitioning sends the number `keys[b]` to partition b, if there are as many partitions as buckets.
    Plain bucket numbers would collide: some partitions would be empty and others twice as large.
    """

    num_files: tuple[int, int, int]  # of each split
    num_quarantine: int
    seed: int
    keys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def first(self, split: int) -> int:
        """Return the first bucket of a split; of the quarantine for split 3."""
        return sum(self.num_files[:split])

    def of_contexts(self, key_N: np.ndarray, split_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (bucket key, order hash as Spark sorts it: signed) of each context key."""
        return self.of_hashes(order_hashes(key_N, self.seed), split_N)

    def of_hashes(self, hash_N: np.ndarray, split_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what `of_contexts` does, from order hashes (uint64)."""
        bucket_N = np.empty(len(hash_N), np.int64)
        for split in np.unique(split_N):
            chosen = split_N == split
            bucket_N[chosen] = self.first(split) + scale_hashes(hash_N[chosen], self.num_files[split])
        return np.array(self.keys, np.int32)[bucket_N], (hash_N ^ np.uint64(1 << 63)).view(np.int64)

    def of_rejects(self, ordinal: int, offset_N: np.ndarray) -> np.ndarray:
        """Return the bucket key of each unreadable line."""
        hash_N = order_hashes(offset_N + (ordinal << 44), self.seed)
        bucket_N = self.first(len(SPLITS)) + scale_hashes(hash_N, max(self.num_quarantine, 1))
        return np.array(self.keys, np.int32)[bucket_N]

    def file_of(self, key: int) -> tuple[str, int]:
        """Return (split or "quarantine", number of the file in it) of a bucket key."""
        bucket = self.keys.index(key)
        for split, name in enumerate(SPLITS):
            if bucket < self.first(split + 1):
                return name, bucket - self.first(split)
        return "quarantine", bucket - self.first(len(SPLITS))


def buckets_of(num_impressions: tuple[int, int, int], num_rejected: int, per_file: int, seed: int) -> Buckets:
    """Make as many buckets as the impressions of each split (as parsed) and the unreadable lines need files."""
    # Contexts without impressions are counted by the task of a bucket, hence at least one bucket a split.
    train, validation, test = (max(math.ceil(number / per_file), 1) for number in num_impressions)
    num_files = (train, validation, test)
    num_quarantine = math.ceil(num_rejected / LINES_PER_QUARANTINE_FILE)
    total = sum(num_files) + num_quarantine
    return Buckets(num_files, num_quarantine, seed, partition_keys(total))
