"""The manifest: the same text for the same dataset, nothing outside the dataset, one sentence for what is no manifest."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
from tiny_dataset import write_tiny_dataset

from pipeline.dataset.manifest import MANIFEST, Manifest, load_manifest, totals_of
from pipeline.errors import InputError


def test_a_manifest_survives_the_way_through_its_text(tmp_path: Path) -> None:
    written = write_tiny_dataset(tmp_path, num_contexts=20, daction=True)
    text = (tmp_path / MANIFEST).read_bytes()
    read = load_manifest(tmp_path)
    assert read == written
    assert read.to_json().encode() == text
    assert read.totals == totals_of(read.files)
    assert load_manifest(f"file://{tmp_path}") == read


def forged(raw: dict[str, Any]) -> str:
    """Return the text of a changed manifest with the checksum that it would have."""
    raw.pop("content_xxh3", None)
    content = json.dumps(raw, indent=1, sort_keys=True) + "\n"
    return json.dumps(raw | {"content_xxh3": xxhash.xxh3_64_hexdigest(content.encode())})


def first_group(raw: dict[str, Any]) -> Any:
    return raw["files"][0]["row_groups"][0]


def twice(raw: dict[str, Any], key: str) -> None:
    raw[key].append(raw[key][0])
    raw["totals"] = {split: {name: 2 * n for name, n in total.items()} for split, total in raw["totals"].items()}


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a path from the root": (lambda raw: raw["files"][0].update(path="/etc/passwd"), "'/etc/passwd', which leaves"),
    "a path upwards": (lambda raw: raw["files"][0].update(path="../x.parquet"), "which leaves the folder"),
    "a path up again": (lambda raw: raw["files"][0].update(path="train/../../x"), "which leaves the folder"),
    "a path with ESC": (lambda raw: raw["files"][0].update(path="train/\x1b[2J"), r"'train/\\x1b\[2J', which"),
    "a vocabulary outside": (lambda raw: raw["fields"][0].update(vocabulary="../v.parquet"), "which leaves the folder"),
    "a file twice": (lambda raw: twice(raw, "files"), "the file 'train/part-00000-.*' stands twice"),
    "a train file as test": (
        lambda raw: raw["files"][0].update(split="test"),
        "is of split='test', and the files of a split are below its folder",
    ),
    "a split of another name": (lambda raw: raw["files"][0].update(split="dev"), "is of split='dev'"),
    "a path in another form": (lambda raw: raw["files"][0].update(path="train//x"), "the file 'train//x'"),
    "a forged count": (lambda raw: first_group(raw).update(clicks=first_group(raw)["clicks"] - 1), "its files sum to"),
    "a forged total": (lambda raw: raw["totals"]["test"].update(rows=1), "its totals are .* and its files sum to"),
    "no total of a split": (lambda raw: raw["totals"].pop("test"), "its totals are"),
    "more clicks than impressions": (lambda raw: first_group(raw).update(clicks=999), "has the counts RowGroup"),
    "negative rows": (lambda raw: first_group(raw).update(rows=-1), "has the counts RowGroup.rows=-1"),
    "rows without end": (lambda raw: first_group(raw).update(rows=2**62, impressions=2**62), "has the counts"),
    "rows that are true": (
        lambda raw: first_group(raw).update(rows=True),
        r"row_groups\[0\].rows is True and not of type int",
    ),
    "rows as a text": (lambda raw: first_group(raw).update(rows="7"), r"files\[0\].row_groups\[0\].rows is '7'"),
    "dactions without the label": (lambda raw: first_group(raw).update(dactions=1), "has the counts"),
    "no bytes": (lambda raw: raw["files"][0].update(bytes=0), "has 0 bytes and"),
    "no row group": (lambda raw: raw["files"][0].update(row_groups=[]), "and 0 row groups"),
    "no checksum": (lambda raw: raw["files"][0].update(xxh3="none"), "no xxh3 of 16 hex digits"),
    "no checksum of a vocabulary": (lambda raw: raw["fields"][0].update(vocabulary_xxh3=""), "no xxh3 of 16"),
    "a key that is none": (lambda raw: raw["files"][0].update(rowgroups=[]), r"files\[0\].rowgroups is no key"),
    "a key that is missing": (lambda raw: raw["files"][0].pop("bytes"), r"files\[0\].bytes is missing"),
    "files that are no list": (lambda raw: raw.update(files={}), "files is {} and not of type"),
    "a file that is a list": (lambda raw: raw.update(files=[[]]), r"files\[0\] is \[\] and not of type DatasetFile"),
    "a field twice": (lambda raw: twice(raw, "fields"), "the field 'user_id' stands twice"),
    "a field with ESC": (lambda raw: raw["fields"][0].update(name="\x1b[2J"), r"the field '\\x1b\[2J' has a name"),
    "a scope of another name": (lambda raw: raw["fields"][0].update(scope="user"), "has scope='user'"),
    "a table without rows": (lambda raw: raw["fields"][0].update(num_rows=0), "has num_rows=0"),
    "a table beyond int32": (lambda raw: raw["fields"][0].update(num_rows=2**31), "has num_rows=2147483648"),
    "other rows than buckets": (lambda raw: raw["fields"][0].update(hash_buckets=5), "hash_buckets=5 has num_rows"),
    "buckets without bounds": (lambda raw: raw["fields"][0].update(kind="bucketized"), "with boundaries=None"),
    "a weight on one value": (lambda raw: raw["fields"][0].update(weighted=True), "is weighted, and only"),
    "a mean of an index": (lambda raw: raw["fields"][0].update(mean=1.0, std=1.0), "has mean=1.0 and std=1.0"),
    "a deviation below 0": (lambda raw: raw["fields"][1].update(std=-1.0), "kind=numeric has mean=.* and std=-1.0"),
    "a mean without deviation": (lambda raw: raw["fields"][1].update(std=None), "and std=None"),
    "a mean of many places": (lambda raw: raw["fields"][1].update(mean=[1.0], std=[1.0]), r"has mean=\(1.0,\)"),
    "a vector without a width": (lambda raw: raw["fields"][1].update(kind="dense"), "has width=None"),
    "another label": (lambda raw: raw["labels"].update(cart="x"), "it has the label 'cart'"),
    "no clicks": (lambda raw: raw["labels"].pop("click"), "it has no label click"),
    "a source of negative size": (lambda raw: raw["sources"][0].update(bytes=-1), "the source 'tiny.csv' has -1 bytes"),
    "a lineage of no checksum": (lambda raw: raw.update(lineage=["x"]), "lineage has the checksum 'x'"),
    "quarantined lines in no file": (
        lambda raw: raw["audit"].update(quarantined={"bad_label": 3}, quarantine=[]),
        "3 lines are quarantined, and the files of the quarantine have 0",
    ),
    "quarantined lines as a text": (lambda raw: raw["audit"].update(quarantined={"bad_label": "3"}), "is no count"),
    "a quarantine outside": (
        lambda raw: raw["audit"].update(quarantine=[{"path": "/x", "lines": 0, "bytes": 1, "xxh3": "0" * 16}]),
        "'/x', which leaves the folder",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_manifest_that_cannot_be_is_refused_with_the_value_even_if_its_checksum_is_right(
    whole: Path, tmp_path: Path, fault: str
) -> None:
    change, sentence = FAULTS[fault]
    raw = json.loads((whole / MANIFEST).read_text())
    change(raw)
    (tmp_path / MANIFEST).write_text(forged(raw))
    with pytest.raises(InputError, match=rf"manifest.json .*{sentence}.*run jobs.preprocess again\.") as caught:
        load_manifest(tmp_path)
    assert str(caught.value).isprintable()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    write_tiny_dataset(path, num_contexts=60, numeric=True)
    return path


def test_the_forger_of_the_faults_changes_nothing_by_itself(whole: Path) -> None:
    raw = json.loads((whole / MANIFEST).read_text())
    assert Manifest.from_json(forged(raw), "copy") == load_manifest(whole)


def test_a_manifest_changed_after_it_was_written_is_refused_by_its_own_checksum(whole: Path) -> None:
    text = (whole / MANIFEST).read_text()
    for old, new in [
        ('"seed": 1', '"seed": 2'),
        ('"tiny.csv"', '"tiny.tsv"'),
        ('"content_xxh3": "', '"content_xxh3": "0'),
    ]:
        assert old in text
        with pytest.raises(InputError, match="its content has another checksum than its key content_xxh3 says"):
            Manifest.from_json(text.replace(old, new), "copy")


def test_a_manifest_of_an_earlier_release_without_a_checksum_of_itself_stays_what_it_is(whole: Path) -> None:
    raw = json.loads((whole / MANIFEST).read_text())
    del raw["content_xxh3"]
    earlier = json.dumps(raw, indent=1, sort_keys=True) + "\n"
    read = Manifest.from_json(earlier, "copy")
    assert read.to_json() == earlier  # runs name their dataset by this text's hash
    assert replace(read, has_own_xxh3=True) == load_manifest(whole)


def test_a_manifest_that_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(InputError, match="it is not a regular file"):
        load_manifest(tmp_path)


def test_what_is_no_manifest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; write it with: python -m jobs.preprocess"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no finished dataset is there"):
        load_manifest(tmp_path)
    for text, sentence in [
        ("{", "is not valid JSON"),
        ("[]", "is not a manifest"),
        ("{}", "is not a manifest"),
        ('{"format_version": "\\u001b[2J"}', r"format_version=\\x1b\[2J and this"),
        ('{"format_version": 99}', "this release reads 1"),
        ('{"format_version": 1}', "is damaged"),
    ]:
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(InputError, match=sentence):
            load_manifest(tmp_path)


def test_a_split_without_impressions_is_refused_with_those_that_have_some(tmp_path: Path) -> None:
    manifest: Manifest = write_tiny_dataset(tmp_path, num_contexts=20, splits={"train": 1.0})
    assert manifest.files_of("train")
    with pytest.raises(InputError, match=r"no impressions in split=test \(it has: train\)"):
        manifest.files_of("test")
    with pytest.raises(InputError, match="is not one of train, validation, test"):
        manifest.files_of("dev")
