"""jobs.inspect: the card says what the manifest says, and rows come back with the raw ids and weights of the log."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from damaged_files import first_table, with_table
from raw_log import RawLog, context_line, impression_line, key_of
from tiny_dataset import write_manifest, write_tiny_dataset

from jobs.inspect import InspectSettings, run
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.decode import decode_rows
from pipeline.dataset.manifest import Source, load_manifest
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
    with pytest.raises(
        InputError, match=r"vocabulary/item_id-\w+.parquet has the checksum .*; restore the file, or run jobs"
    ):
        decode_rows(str(dataset), "train", 1)
    vocabulary.write_bytes(whole)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data", num_contexts=40)
    return tmp_path / "data"


def first_file(data: Path, split: str) -> Path:
    return data / load_manifest(data).files_of(split)[0].path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_place(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda data: os.truncate(first_file(data, "test"), 9), r"test/part\S+ has 9 bytes where .*manifest.json says"),
    (
        lambda data: first_file(data, "validation").unlink(),
        r"validation/part\S+ is missing, though .*manifest.json names",
    ),
    (lambda data: flip_a_bit(first_file(data, "train")), r"train/part\S+ has the checksum"),
    (lambda data: flip_a_bit(data / "vocabulary/item_id.parquet"), r"vocabulary/item_id.parquet has the checksum"),
    (lambda data: in_place(data / "vocabulary/user_id.parquet", os.mkfifo), r"user_id.parquet .*not a regular file"),
    (lambda data: in_place(first_file(data, "test"), lambda path: path.symlink_to("/dev/zero")), "a link leads out"),
    (lambda data: (data / "audit.json").write_bytes(b"{"), r"audit.json is not valid JSON"),
    (lambda data: (data / "audit.json").write_bytes(b"\xff"), r"audit.json is not valid JSON \('utf-8' codec"),
    (lambda data: (data / "audit.json").write_bytes(b"[" * 100_000), r"audit.json is not valid JSON"),
    (lambda data: (data / "audit.json").write_bytes(b'"x"'), r"audit.json is damaged .it is no JSON object"),
    (lambda data: (data / "audit.json").write_bytes(b"{}"), r"audit.json is damaged .it is no JSON object"),
    (lambda data: (data / "audit.json").write_bytes(b'{"fields": 7}'), r"audit.json is damaged"),
    (
        lambda data: (data / "audit.json").write_bytes(b'{"content_xxh3": "0"}'),
        r"audit.json is damaged: its content has",
    ),
    (lambda data: (data / "run.json").write_bytes(b"{"), r"run.json is not valid JSON"),
    (lambda data: os.mkfifo(data / "audit.json"), r"audit.json cannot be read .it is not a regular file"),
    (lambda data: (data / "audit.json").mkdir(), r"audit.json cannot be read .it is not a regular file"),
    (
        lambda data: (data / "audit.json").symlink_to("/dev/zero"),
        r"audit.json cannot be read .it is not a regular file",
    ),
]


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_a_damaged_dataset_is_refused_before_anything_is_printed(
    tiny: Path, capsys: pytest.CaptureFixture[str], fault: int
) -> None:
    damage, sentence = FAULTS[fault]
    damage(tiny)
    with pytest.raises(InputError, match=sentence) as caught:
        run(InspectSettings(data=str(tiny)))
    assert str(caught.value).isprintable()
    assert capsys.readouterr().out == ""


def test_the_checksum_of_every_file_is_compared_where_asked_for(tiny: Path) -> None:
    flip_a_bit(first_file(tiny, "test"))
    run(InspectSettings(data=str(tiny)))
    with pytest.raises(InputError, match=r"test/part\S+ has the checksum"):
        run(InspectSettings(data=str(tiny), verify="checksum"))
    with pytest.raises(InputError, match=r"verify=all is not one of size, checksum"):
        InspectSettings(data=str(tiny), verify="all")


def test_text_of_the_input_is_printed_with_its_control_characters_escaped(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = load_manifest(tiny)
    table = first_table(tiny, manifest)
    bad = "\x1b[2Jx\n\u202e"
    contexts = pa.array([bad] * len(table))
    manifest = with_table(
        tiny, manifest, table.set_column(0, table.schema.field("context_id"), contexts), compression="zstd"
    )
    fields = tuple(replace(entry, raw_id=bad) for entry in manifest.fields)
    labels = dict.fromkeys(manifest.labels, bad)
    write_manifest(tiny, replace(manifest, fields=fields, labels=labels, sources=(Source(bad, 1),)))
    run(InspectSettings(data=str(tiny)))
    text = capsys.readouterr().out
    assert text.count(r"\x1b[2Jx\n\u202e") == len(fields) + len(labels) + 1 + 3
    assert all(line.isprintable() for line in text.split("\n"))


def test_rows_that_contradict_their_manifest_are_one_sentence(tiny: Path) -> None:
    manifest = load_manifest(tiny)
    table = first_table(tiny, manifest)
    place = table.schema.get_field_index("user_id")
    users = pa.array([999] * len(table), pa.int32())
    forged = with_table(tiny, manifest, table.set_column(place, table.schema.field(place), users), compression="zstd")
    write_manifest(tiny, forged)
    with pytest.raises(InputError, match=r"has rows of split=train that contradict its manifest \(KeyError: 999\)"):
        run(InspectSettings(data=str(tiny)))
    write_manifest(tiny, with_table(tiny, manifest, table.drop_columns("click"), compression="zstd"))
    with pytest.raises(InputError, match=r"column click is missing where the manifest's fields imply"):
        run(InspectSettings(data=str(tiny)))


def test_a_job_run_by_its_path_finds_the_standard_librarys_inspect(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "preprocess.py"), "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "python -m jobs.preprocess" in done.stdout
    assert "Turn raw logs into a dataset" in done.stdout


def test_a_dataset_without_its_audit_is_shown_and_that_is_said(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (copy / "audit.json").unlink()
    run(InspectSettings(data=str(copy), rows=0))
    assert f"warning: {copy} has no audit.json, so what the log looked like is not shown" in capsys.readouterr().out
