import random
from typing import TYPE_CHECKING

import pytest

from pipeline.spark.hashes import murmur3_of_int, partition_keys, xxhash64_of_text
from pipeline.spark.paths import escape_glob

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import SparkSession


def test_the_hash_of_an_int_is_sparks_and_each_partition_has_a_key(spark: "SparkSession") -> None:
    found = spark.range(-500, 500).selectExpr("hash(cast(id as int))").collect()
    assert [murmur3_of_int(value) for value in range(-500, 500)] == [row[0] for row in found]
    for num_partitions in (1, 2, 37):
        keys = partition_keys(num_partitions)
        frame = spark.createDataFrame([(key,) for key in keys], "key int").repartition(num_partitions, "key")
        rows = frame.selectExpr("key", "spark_partition_id() as partition").collect()
        assert {row["key"]: row["partition"] for row in rows} == {key: number for number, key in enumerate(keys)}


def test_the_hash_of_a_text_is_sparks(spark: "SparkSession") -> None:
    draw = random.Random(1)
    texts = ["", "a", "file:/raw log/é.csv", "世界", "😀" * 20]
    texts += ["".join(draw.choices("abc/%.é", k=draw.randrange(100))) for _ in range(200)]
    frame = spark.createDataFrame(list(enumerate(texts)), "number int, text string")
    found = frame.selectExpr("number", "xxhash64(text) as hashed").orderBy("number").collect()
    assert [xxhash64_of_text(text) for text in texts] == [row["hashed"] for row in found]


@pytest.mark.parametrize("name", ["plain", "a*b", "[a]", "{b,c}", "d?", "back\\slash"])
def test_an_escaped_path_names_one_file(tmp_path: "Path", spark: "SparkSession", name: str) -> None:
    for other in (name, "axb", "a", "b", "dd"):
        (tmp_path / other).write_text(f"{other}\n")
    rows = spark.read.text(escape_glob(f"{tmp_path}/{name}")).collect()
    assert [row["value"] for row in rows] == [name]
