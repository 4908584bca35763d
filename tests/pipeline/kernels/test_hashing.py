import numpy as np
import pytest

from pipeline.kernels.hashing import GOLDEN, VALIDATION, mix, order_hashes, scale_hashes, splits_of

SEED = 1234567
# The first numbers of splitmix64 from this seed (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_mix_over_a_counter_of_golden_steps_is_splitmix64() -> None:
    counters = [(SEED + step * GOLDEN) % 2**64 for step in range(1, 1 + len(PUBLISHED))]
    assert [int(mix(np.uint64(counter))) for counter in counters] == PUBLISHED


def test_scaled_hashes_cut_64_bits_into_equal_ranges() -> None:
    hash_N = order_hashes(np.arange(50_000), seed=3)
    expected = [int(hashed) * 7 >> 64 for hashed in hash_N]
    assert scale_hashes(hash_N, 7).tolist() == expected
    assert np.bincount(expected, minlength=7) == pytest.approx(np.full(7, 50_000 / 7), rel=0.05)


def test_the_validation_split_is_no_head_of_the_train_order() -> None:
    keys = np.arange(50_000)
    is_validation = splits_of(keys, is_test=False, validation=0.3, seed=3) == VALIDATION
    assert is_validation.mean() == pytest.approx(0.3, abs=0.01)
    assert order_hashes(keys, seed=3)[is_validation].max() > 0.99 * 2**64
