"""String ids keep their text in the vocabulary, and two texts of one hash are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from event_log import IMPRESSIONS, written

from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.raw_ids import text_id
from pipeline.events.id_texts import with_texts
from pipeline.features.base_vocabulary import extend
from pipeline.features.vocabulary import Vocabulary
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]


def vocabulary(ids: list[int], texts: tuple[str | None, ...] = ()) -> Vocabulary:
    return Vocabulary(np.array(ids, np.int64), np.ones(len(ids), np.int64), texts)


def test_the_id_of_a_text_is_what_spark_makes_of_it(spark: Any) -> None:
    from pipeline.events.read import raw_id

    texts = [
        "0",
        "7",
        "007",
        "-7",
        "9223372036854775807",
        "9223372036854775808",
        "",
        " 1",
        "ada",
        "Ålesund",
        "1\n",
        "٣",
    ]
    frame = spark.createDataFrame([(text,) for text in texts], "text string")
    assert [row[0] for row in frame.select(raw_id(frame["text"])).collect()] == [text_id(text) for text in texts]


def test_a_text_is_kept_beside_its_id_and_a_second_one_with_its_hash_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = with_texts(vocabulary([9, 4, 7]), np.array([7, 9, 7]), ["b", "c", "a"])
    assert found.texts == ("c", None, "a")
    assert "the ids 'a' and 'b' have one hash, 7, and so one index." in capsys.readouterr().out
    assert found.table().column_names == ["raw_id", "index", "count", "text"]
    assert with_texts(vocabulary([4]), np.empty(0, np.int64), []).table().column_names == ["raw_id", "index", "count"]


def test_texts_of_a_base_stay_where_today_has_none() -> None:
    grown = extend(vocabulary([5, 6], ("five", "six")), vocabulary([]), vocabulary([8]))
    assert grown.texts == ("five", "six", None)
    assert with_texts(grown, np.array([8, 6]), ["eight", "six"]).texts == ("five", "six", "eight")


@pytest.mark.usefixtures("spark")
def test_the_vocabulary_files_of_text_columns_have_the_texts_also_of_yesterdays_ids(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    overrides = written(tmp_path / "raw", "jsonl")
    first = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    assert texts(tmp_path / "out", first, "user_city") == ["Oslo"]
    assert sorted(texts(tmp_path / "out", first, "item_tags")) == ["new", "t31"]
    assert texts(tmp_path / "out", first, "item_id") is None
    later = [row | {"city": "Rome", "user_id": "eve"} for row in IMPRESSIONS]
    written(tmp_path / "later", "jsonl", later)
    base = f"vocabulary.base={tmp_path / 'out'}"
    second = preprocess(preprocess_settings(tmp_path / "later", tmp_path / "next", *overrides, base))
    assert texts(tmp_path / "next", second, "user_city") == ["Oslo", "Rome"]
    assert set(texts(tmp_path / "next", second, "user_id") or []) == {"ada", "bob", "eve"}


def texts(out: Path, manifest: Manifest, name: str) -> list[str] | None:
    entry = next(entry for entry in manifest.fields if entry.name == name)
    table = pq.read_table(out / entry.vocabulary)
    return table["text"].to_pylist() if "text" in table.column_names else None
