"""The whole chain on small logs: every value, every line accounted for, every policy."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dataset_checks import assert_dataset_equals_reference
from raw_log import random_log, small_log

from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.preprocess import preprocess

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


def test_parts_that_are_empty_or_hold_one_bad_line(tmp_path: Path, preprocess_settings: Settings) -> None:
    raw = random_log(4, num_contexts=6).write(tmp_path / "raw", num_parts=2)
    for table in ("sample_skeleton_train", "common_features_test"):
        for name, text in (("part-002", b""), ("part-003", b"cut o"), ("part-004", b"\r\n"), ("part-000-a", b"\x00\n")):
            (raw / table / name).write_bytes(text)
        for name, text in (("part-005.gz", b""), ("part-006.gz", b"1,0,0,"), ("part-007.gz", b"\n")):
            (raw / table / name).write_bytes(gzip.compress(text))
    settings = preprocess_settings(raw, tmp_path / "out", *SMALL)
    preprocess(settings)
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


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("[cart]", {("train", 3), ("test", 1)}), ("[wish]", {("train", 1)}), ("[cart,wish]", {("train", 1), ("train", 3), ("test", 1)})],
)  # fmt: skip
def test_a_daction_is_a_click_that_a_chosen_action_followed(
    tmp_path: Path, preprocess_settings: Settings, chosen: str, expected: set[tuple[str, int]]
) -> None:
    raw = small_log().write(tmp_path / "raw")
    # Of the impressions, 1 and 3 were clicked; 99 is none.
    (raw / "actions_train.csv").write_text("1,wish,3.5\n3,cart,60\n4,cart,9\n3,cart,61\n2,wish,1\n99,cart,1\n")
    (raw / "actions_test.csv").write_text("1,cart,5\n4,wish,2\n")
    settings = preprocess_settings(raw, tmp_path / "out", f"labels.daction={chosen}", "split.validation=0")
    manifest = preprocess(settings)
    found = set()
    for file in manifest.files:
        for row in pq.read_table(tmp_path / "out" / file.path).to_pylist():
            found |= {(file.split, i) for i, d in zip(row["impression_id"], row["daction"], strict=True) if d}
    assert found == expected
    for split in ("train", "test"):
        assert manifest.totals[split]["dactions"] == sum(place == split for place, _ in expected)
    assert manifest.labels["daction"].endswith(chosen.strip("[]").replace(",", " or "))
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
