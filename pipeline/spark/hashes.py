"""Spark's own hashes in Python: the driver knows a row's partition, or a file's id, before Spark computes it.

tests/pipeline/spark/test_hashes.py compares each with Spark's.
"""

import xxhash

_SEED = 42  # Spark's, for both
_WORD = (1 << 32) - 1


def murmur3_of_int(value: int) -> int:
    """Return Spark's `hash` of an int column: Murmur3 (x86, 32 bits) of its 4 bytes, as a signed int."""
    word = value * 0xCC9E2D51 & _WORD
    word = (word << 15 | word >> 17) & _WORD
    hashed = _SEED ^ (word * 0x1B873593 & _WORD)
    hashed = (hashed << 13 | hashed >> 19) & _WORD
    hashed = (hashed * 5 + 0xE6546B64 & _WORD) ^ 4
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B & _WORD
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 & _WORD
    hashed ^= hashed >> 16
    return hashed - (1 << 32) if hashed >= 1 << 31 else hashed


def xxhash64_of_text(text: str) -> int:
    """Return Spark's `xxhash64` of a string column: of its UTF-8, as a signed long."""
    unsigned = xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"), _SEED)
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned


def partition_keys(num_partitions: int) -> tuple[int, ...]:
    """Find for each partition a number that `repartition(num_partitions, column)` sends to it."""
    found: dict[int, int] = {}
    candidate = 0
    while len(found) < num_partitions:
        found.setdefault(murmur3_of_int(candidate) % num_partitions, candidate)
        candidate += 1
    return tuple(found[partition] for partition in range(num_partitions))
