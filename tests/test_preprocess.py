"""The whole chain on small logs: every value, every line accounted for, every policy."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dataset_checks import assert_dataset_equals_reference
from raw_log import context_line, key_of, random_log, small_log

from pipeline.manifest import InputError
from pipeline.preprocess import preprocess
from pipeline.settings import PreprocessSettings

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")

pytestmark = pytest.mark.usefixtures("spark")


def test_every_value_of_every_surviving_row_equals_the_reference_and_every_other_line_is_in_quarantine(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = random_log(1).write(tmp_path / "raw")
    settings = preprocess_settings(raw, tmp_path / "out", *SMALL, "source.split_bytes=20000")
    manifest = preprocess(settings)
    always = ("malformed_line", "bad_label", "bad_context_key", "bad_feature")
    later = ("missing_context", "duplicate_impression", "duplicate_context")
    assert all(manifest.audit["quarantined"][reason] > 0 for reason in always + later)
    assert len([file for file in manifest.files if file.split == "train"]) > 1
    assert_dataset_equals_reference(raw, tmp_path / "out", settings)


def test_interleaved_contexts_in_gzip_with_carriage_returns_and_no_last_line_feed(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    log = random_log(2, interleaved=True)
    log.ends, log.terminated = {"sample_skeleton_train": b"\r\n", "common_features_test": b"\r\n"}, False
    raw = log.write(tmp_path / "raw", compressed=True)
    settings = preprocess_settings(raw, tmp_path / "out", *SMALL)
    preprocess(settings)
    assert_dataset_equals_reference(raw, tmp_path / "out", settings)


def test_directories_of_parts_read_in_splits_of_a_kilobyte(tmp_path: Path, preprocess_settings: Settings) -> None:
    log = random_log(3, num_contexts=6, interleaved=True)
    raw = log.write(tmp_path / "raw", num_parts=3)
    settings = preprocess_settings(raw, tmp_path / "out", *SMALL, "source.split_bytes=1024", "split.validation=0.4")
    manifest = preprocess(settings)
    assert len(manifest.sources) == 12
    assert_dataset_equals_reference(raw, tmp_path / "out", settings)


def test_row_groups_hold_a_fixed_number_of_impressions_give_or_take_a_row_and_their_counts_are_true(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = random_log(5).write(tmp_path / "raw")
    manifest = preprocess(preprocess_settings(raw, tmp_path / "out", *SMALL))
    for file in manifest.files:
        parquet = pq.ParquetFile(tmp_path / "out" / file.path)
        assert parquet.num_row_groups == len(file.row_groups)
        for number, group in enumerate(file.row_groups):
            table = parquet.read_row_group(number)
            lengths = [len(ids) for ids in table["impression_id"].to_pylist()]
            assert (group.rows, group.impressions) == (len(lengths), sum(lengths))
            assert group.clicks == sum(map(sum, table["click"].to_pylist()))
            assert group.conversions == sum(map(sum, table["conversion"].to_pylist()))
            assert max(lengths) <= 8
            assert group.impressions < 50 + 8
            assert group.impressions >= 50 or number == len(file.row_groups) - 1


def test_a_conversion_without_a_click_is_kept_quarantined_or_stops_the_job_as_the_policy_says(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = small_log().write(tmp_path / "raw")
    kept = preprocess(preprocess_settings(raw, tmp_path / "keep", "split.validation=0"))
    assert kept.totals["train"] == {"rows": 2, "impressions": 4, "clicks": 2, "conversions": 1}
    assert kept.audit["kept"]["train"]["conversion_without_click"] == 1
    policy = "checks.conversion_without_click"
    aside = preprocess(preprocess_settings(raw, tmp_path / "aside", "split.validation=0", f"{policy}=quarantine"))
    assert aside.totals["train"] == {"rows": 2, "impressions": 3, "clicks": 2, "conversions": 1}
    assert aside.audit["quarantined"]["conversion_without_click"] == 2
    with pytest.raises(InputError, match=r"sample_skeleton_train.csv, byte \d+: conversion_without_click.*=keep"):
        preprocess(preprocess_settings(raw, tmp_path / "fail", f"{policy}=fail"))
    assert not (tmp_path / "fail" / "manifest.json").exists()


@pytest.mark.parametrize("reason", ["duplicate_impression", "bad_feature"])
def test_a_policy_of_fail_names_the_first_such_line(tmp_path: Path, preprocess_settings: Settings, reason: str) -> None:
    log = small_log()
    lines = log.lines["sample_skeleton_test"]
    lines.append(lines[0] if reason == "duplicate_impression" else lines[0].replace(b"\x03", b"\x03?"))
    raw = log.write(tmp_path / "raw")
    offset = sum(len(line) + 1 for line in lines[:-1])
    with pytest.raises(InputError, match=f"sample_skeleton_test.csv, byte {offset}: {reason}"):
        preprocess(preprocess_settings(raw, tmp_path / "out", f"checks.{reason}=fail"))


def test_a_count_that_disagrees_with_the_features_can_be_quarantined(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    log = small_log()
    log.lines["common_features_test"][0] = context_line(key_of(1), [("101", 1, "1.0")], count=9)
    raw = log.write(tmp_path / "raw")
    settings = preprocess_settings(raw, tmp_path / "out", "checks.feature_count_mismatch=quarantine")
    manifest = preprocess(settings)
    test = manifest.audit["lines"]["test"]
    assert test["contexts"]["quarantined"] == {"feature_count_mismatch": 1}
    assert test["impressions"]["quarantined"] == {"missing_context": 2}


def test_a_daction_is_a_click_that_a_chosen_action_followed(tmp_path: Path, preprocess_settings: Settings) -> None:
    raw = small_log().write(tmp_path / "raw")
    (raw / "actions_train.csv").write_text("1,wish,3.5\n3,cart,60\n4,cart,9\n3,cart,61\n")
    (raw / "actions_test.csv").write_text("1,cart,5\n")
    settings = preprocess_settings(raw, tmp_path / "out", "labels.daction=[cart]", "split.validation=0")
    manifest = preprocess(settings)
    found = {}
    for file in manifest.files:
        for row in pq.read_table(tmp_path / "out" / file.path).to_pylist():
            found |= {(file.split, i): d for i, d in zip(row["impression_id"], row["daction"], strict=True) if d}
    assert found == {("train", 3): 1, ("test", 1): 1}
    assert manifest.totals["train"]["dactions"] == 1
    assert "cart" in manifest.labels["daction"]
    assert [source.name for source in manifest.sources][-2:] == ["actions_train.csv", "actions_test.csv"]


def test_a_gzip_file_that_breaks_off_is_named(tmp_path: Path, preprocess_settings: Settings) -> None:
    raw = random_log(6, num_contexts=150, dirty=False).write(tmp_path / "raw", compressed=True)
    path = raw / "sample_skeleton_test.csv.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"sample_skeleton_test.csv.gz cannot be read to its end"):
        preprocess(preprocess_settings(raw, tmp_path / "out"))


def test_the_audit_counts_values_and_the_share_out_of_vocabulary(tmp_path: Path, preprocess_settings: Settings) -> None:
    log = small_log()
    lines = log.lines["sample_skeleton_test"]
    lines[0] = lines[0].replace(b"205\x021\x03", b"205\x0277\x03")
    raw = log.write(tmp_path / "raw")
    preprocess(preprocess_settings(raw, tmp_path / "out", "split.validation=0"))
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    counts = {"records": 4, "without": 0, "values": 4, "most": 1, "length_bins": [0, 4]}
    assert audit["fields"]["item_id"]["test"] == counts | {"out_of_vocabulary": 1, "index_bins": [0, 1, 3]}
    assert audit["fields"]["user_item_brands"]["train"] == counts | {"out_of_vocabulary": 0, "index_bins": [0, 0, 4]}
    assert audit["funnel"]["test"] == {"impressions": 4, "clicks": 2, "conversions": 1}
