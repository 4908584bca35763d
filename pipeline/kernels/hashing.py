"""The one hash of the pipeline: it orders rows, cuts the validation split, and places keys in tables and buckets.

A context key is 64 bits and `mix` is a bijection of 64 bits, so two contexts never share an order hash: sorting by it
groups the lines of a context.
"""

import numpy as np

from pipeline.kernels.jit import nb

TRAIN, VALIDATION, TEST = 0, 1, 2  # positions in manifest.SPLITS

_WORD = 1 << 64
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@nb.njit(cache=True, inline="always")
def mix(word: np.uint64) -> np.uint64:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of uint64 without visible pattern."""
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
def _scaled(hashes: np.ndarray, buckets: np.uint64) -> np.ndarray:
    out = np.empty(len(hashes), np.int64)
    for i in range(len(hashes)):
        out[i] = np.int64(((hashes[i] >> _S32) * buckets) >> _S32)
    return out


def order_hashes(keys: np.ndarray, seed: int) -> np.ndarray:
    """uint64 per context key: the pseudo-random order of contexts in their split."""
    return _order_hashes(keys, np.uint64((2 * seed + 1) * 0x9E3779B97F4A7C15 % _WORD))


def scaled(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """floor(hash / 2^64 * buckets), from the upper half of the hash: equal ranges of the hash in hash order."""
    return _scaled(hashes, np.uint64(buckets))


def splits_of(keys: np.ndarray, is_test: bool, validation: float, seed: int) -> np.ndarray:
    """int64 per context key: TEST for the test period, else VALIDATION for a share of the keys, else TRAIN."""
    if is_test:
        return np.full(len(keys), TEST)
    # A salt of its own, or validation would be the head of the train order.
    hashes = _order_hashes(keys, np.uint64((2 * seed + 1) * 0xD1B54A32D192ED03 % _WORD))
    return (hashes < np.uint64(min(int(validation * _WORD), _WORD - 1))).astype(np.int64) * VALIDATION
