import numpy as np
import pytest
from splitmix64 import GOLDEN, MASK, mix

from training.model.counter_random import stream_key, uniform_rows


def test_initial_values_equal_a_scalar_reference() -> None:
    values = uniform_rows(seed=7, table="item_id", first_row=3, num_rows=4, num_columns=5, bound=0.5)
    key = stream_key(7, "item_id")
    for row in range(4):
        for column in range(5):
            fraction = (mix((mix((key + (row + 3) * GOLDEN) & MASK) + column * GOLDEN) & MASK) >> 40) / 2**24
            assert values[row, column] == pytest.approx(fraction - 0.5, abs=1e-7)


def test_initial_values_do_not_depend_on_how_a_table_is_cut() -> None:
    whole = uniform_rows(1, "t", 0, 40_000, 6, 0.1)
    np.testing.assert_array_equal(whole[33_333:], uniform_rows(1, "t", 33_333, 6_667, 6, 0.1))
    np.testing.assert_array_equal(whole[:, :4], uniform_rows(1, "t", 0, 40_000, 4, 0.1))


def test_initial_values_are_uniform_and_differ_by_seed_and_table() -> None:
    values = uniform_rows(1, "t", 0, 10_000, 18, 0.05)
    assert abs(values.mean()) < 5e-4
    assert values.std() == pytest.approx(0.05 / np.sqrt(3), rel=0.01)
    assert np.abs(np.corrcoef(values.T) - np.eye(18)).max() < 0.05
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.01
    for other in (uniform_rows(2, "t", 0, 10_000, 18, 0.05), uniform_rows(1, "u", 0, 10_000, 18, 0.05)):
        assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.01
