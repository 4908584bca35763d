"""The one hash of the pipeline: it orders rows, cuts the validation split, and places keys in tables and buckets.

A context key is 64 bits and `mix` is a bijection of 64 bits, so two contexts never share an order hash: sorting by it
groups the lines of a context.
"""

import numpy as np

from pipeline.kernels.jit import nb

TRAIN, VALIDATION, TEST = 0, 1, 2  # positions in manifest.SPLITS

#: The step of splitmix64's counter, 2^64 over the golden ratio: its multiples fill 64 bits evenly.
GOLDEN = 0x9E3779B97F4A7C15
#: The two multipliers of splitmix64's finalizer (its variant 13 by Stafford).
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

_NUM_HASHES = 1 << 64
_M1, _M2 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@nb.njit(cache=True, inline="always")
def mix(word: np.uint64) -> np.uint64:
    """Hash a word by the finalizer of splitmix64 (Steele, Lea, Flood 2014), a bijection of uint64."""
    word = (word ^ (word >> _S30)) * _M1
    word = (word ^ (word >> _S27)) * _M2
    return word ^ (word >> _S31)


@nb.njit(cache=True)
def _order_hashes(keys: np.ndarray, salt: np.uint64) -> np.ndarray:
    out = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        out[i] = mix(np.uint64(keys[i]) + salt)
    return out


@nb.njit(cache=True)
def _scale_each(hashes: np.ndarray, buckets: np.uint64) -> np.ndarray:
    out = np.empty(len(hashes), np.int64)
    for i in range(len(hashes)):
        out[i] = np.int64(((hashes[i] >> _S32) * buckets) >> _S32)
    return out


def order_hashes(keys: np.ndarray, seed: int) -> np.ndarray:
    """Hash context keys to uint64: contexts are ordered by this hash in their split."""
    return _order_hashes(keys, np.uint64((2 * seed + 1) * GOLDEN % _NUM_HASHES))


def scale_hashes(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """Return floor(hash / 2^64 * buckets) as int64, from the upper half of the hash: buckets are ranges of the hash."""
    return _scale_each(hashes, np.uint64(buckets))


def splits_of(keys: np.ndarray, is_test: bool, validation: float, seed: int) -> np.ndarray:
    """Return the split of each context key, int64.

    It is TEST in the test period, else VALIDATION for a share of the keys, else TRAIN.
    """
    if is_test:
        return np.full(len(keys), TEST)
    # A salt of its own, or validation would be the head of the train order.
    hashes = _order_hashes(keys, np.uint64((2 * seed + 1) * 0xD1B54A32D192ED03 % _NUM_HASHES))
    return (hashes < np.uint64(min(int(validation * _NUM_HASHES), _NUM_HASHES - 1))).astype(np.int64) * VALIDATION
