"""Hashed fields and vocabularies of a limited size, through the whole chain."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from dataset_checks import assert_dataset_equals_reference
from raw_log import random_log

from pipeline.aliccp.find import find_sources
from pipeline.aliccp.reader import ChunkReader
from pipeline.chunks.sources import InputSplit
from pipeline.config.preprocess import PreprocessSettings
from pipeline.features.fields import catalogue
from pipeline.passes.count import NO_PART, CountTasks
from pipeline.passes.duplicates import Partitions
from pipeline.passes.input import SplitInput
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")


@pytest.mark.usefixtures("spark")
def test_hashed_fields_have_no_vocabulary_and_limited_ones_their_most_frequent_ids(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = random_log(8).write(tmp_path / "raw")
    hashed = [
        f"+features.fields.{name}.hash_buckets=11" for name in ("user_id", "user_shops", "item_id", "item_intention")
    ]
    chosen = preprocess_settings(
        raw, tmp_path / "out", *SMALL, *hashed, "vocabulary.max_ids=9", "+features.fields.item_brand.max_ids=3"
    )
    manifest = preprocess(chosen)
    assert_dataset_equals_reference(raw, tmp_path / "out", chosen)
    rows = {entry.name: entry.num_rows for entry in manifest.fields}
    assert (rows["item_id"], rows["item_brand"], max(rows.values())) == (13, 5, 13)
    assert not list((tmp_path / "out" / "vocabulary").glob("item_id*"))


def test_nothing_of_a_hashed_or_a_numeric_field_enters_the_counter(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = random_log(9).write(tmp_path / "raw")
    settings = preprocess_settings(raw, tmp_path / "out", "features=aliccp_numeric")
    for name, entry in settings.features.fields.items():
        entry.hash_buckets = 5 if entry.kind == "categorical" and name != "item_shop" else 0
    fields = catalogue(settings.features, 1)
    splits = tuple(InputSplit(source, 0, source.bytes) for source in find_sources(str(raw), False))
    counting = CountTasks(
        SplitInput(splits, ChunkReader.of(fields, settings)), fields, (0,), Partitions(()), fields.fields
    )
    numbers = iter([pa.record_batch({"id": pa.array(range(len(splits)), pa.int64())})])
    blobs = [
        blob.as_py()
        for batch in counting.count(numbers)
        for part, blob in zip(batch.column("part").to_pylist(), batch.column("blob"), strict=True)
        if part > NO_PART
    ]
    counted = {word & 0xFFFF for blob in blobs for word in np.frombuffer(blob, np.int64)[1::2].tolist()}
    assert [fields.fields[number].name for number in counted] == ["item_shop"]
