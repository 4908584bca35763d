"""Random small shops: what the pipeline makes of them is what the slow reference does. A few here, more in acceptance."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.random_shops import differences

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_a_world_of_random_shops_is_that_of_the_reference(spark: "SparkSession", tmp_path: Path) -> None:
    assert differences(spark, 3_000_000, 60, tmp_path) == []


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.parametrize("seed", range(3_000_001, 3_000_009))
def test_more_worlds_of_random_shops_are_those_of_the_reference(
    spark: "SparkSession", tmp_path: Path, seed: int
) -> None:
    assert differences(spark, seed, 60, tmp_path) == []
