"""jobs.inspect: the card says what the manifest says, and rows come back with the raw ids and weights of the log."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_log import RawLog, context_line, impression_line, key_of

from jobs.inspect import InspectSettings, run
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.decode import decode_rows
from pipeline.errors import InputError
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
ROOT = Path(__file__).parents[2]


def log() -> RawLog:
    """One context of train with two impressions, and one of test with an id that train does not have."""
    found = RawLog()
    shops = [("110_14", shop, f"{shop / 10}") for shop in range(31, 40)]
    found.lines["common_features_train"] = [context_line(key_of(1), [("101", 11, "1"), *shops])]
    found.lines["common_features_test"] = [context_line(key_of(2), [("122", 5, "1")])]
    liked = [("205", 42, "1"), ("210", 7, "1"), ("210", 8, "1"), ("508", 3, "0.69315")]
    found.lines["sample_skeleton_train"] = [
        impression_line(1, 1, 1, key_of(1), liked),
        impression_line(2, 0, 0, key_of(1), [("206", 43, "1")]),
    ]
    found.lines["sample_skeleton_test"] = [impression_line(9, 1, 0, key_of(2), [("205", 77, "1")])]
    return found


@pytest.fixture(scope="module")
def dataset(spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings) -> Path:
    root = tmp_path_factory.mktemp("inspected")
    raw = log().write(root / "raw")
    preprocess(preprocess_settings(raw, root / "out", "split.validation=0", "vocabulary.min_count=1"))
    return root / "out"


def test_a_row_comes_back_as_the_log_had_it_with_missing_and_unknown_ids_named(dataset: Path) -> None:
    train = re.sub(r" +", " ", decode_rows(str(dataset), "train", 3))
    assert train.startswith(f"train row 1: context {key_of(1)}, group_id 11, 2 impressions\n user_id 11\n")
    assert "user_profile missing" in train
    assert "user_shops 31 × 3.1, 32 × 3.2, 33 × 3.3, 34 × 3.4, 35 × 3.5, 36 × 3.6, … (9 values)" in train
    first, second = train.split(" impression 1: click 1 conversion 1")[1].split(" impression 2: click 0 conversion 0")
    assert "item_id 42" in first
    assert "item_intention 7, 8\n" in first
    assert "user_item_categories 3 × 0.69315" in first
    assert "item_id missing" in second
    assert "item_category 43" in second
    assert "item_intention none" in second
    test = re.sub(r" +", " ", decode_rows(str(dataset), "test", 1))
    assert "group_id missing" in test
    assert "item_id out of vocabulary" in test


def test_the_card_has_splits_rates_labels_fields_and_the_unknown_share(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(InspectSettings(data=str(dataset), split="test", rows=1))
    text = re.sub(r" +", " ", capsys.readouterr().out)
    assert re.search(r"train 1 2 1 \(50 %\) 1 \(100 %\) 1 1 ", text)
    assert "conversion: the impression was clicked and bought" in text
    assert re.search(r"item_id 205 impression one 3 rows 0.00 % 100.00 %", text)
    assert "quarantined: nothing" in text
    assert "impression 9: click 1 conversion 0" in text
    (dataset / "audit.json").rename(dataset / "audit.away")
    run(InspectSettings(data=str(dataset), rows=0))
    (dataset / "audit.away").rename(dataset / "audit.json")
    assert re.search(r"item_id 205 impression one 3 rows – –", re.sub(r" +", " ", capsys.readouterr().out))


def test_a_mistake_is_answered_in_one_sentence(dataset: Path) -> None:
    with pytest.raises(InputError, match=r"split=validation .it has: test, train.; choose one of these"):
        decode_rows(str(dataset), "validation", 1)
    with pytest.raises(InputError, match="rows=-1 is negative"):
        InspectSettings(data=str(dataset), rows=-1)
    vocabulary = next((dataset / "vocabulary").glob("item_id-*.parquet"))
    whole = vocabulary.read_bytes()
    vocabulary.write_bytes(whole[:20])
    with pytest.raises(InputError, match=r"cannot be read .*; restore the file, or run jobs.preprocess again"):
        decode_rows(str(dataset), "train", 1)
    vocabulary.write_bytes(whole)


def test_a_job_run_by_its_path_finds_the_standard_librarys_inspect(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "preprocess.py"), "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "jobs.preprocess: raw logs to a dataset" in done.stdout
