"""The manifest: the same text for the same dataset, nothing outside the dataset, one sentence for what is no manifest."""

import json
from pathlib import Path

import pytest
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


@pytest.mark.parametrize("path", ["/etc/passwd", "../elsewhere.parquet", "train/../../elsewhere.parquet"])
def test_a_path_that_leaves_the_dataset_is_refused(tmp_path: Path, path: str) -> None:
    write_tiny_dataset(tmp_path, num_contexts=20)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    raw["files"][0]["path"] = path
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(InputError, match="leaves the dataset"):
        load_manifest(tmp_path)


def test_what_is_no_manifest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; write it with: python -m jobs.preprocess"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no finished dataset is there"):
        load_manifest(tmp_path)
    for text, sentence in [
        ("{", "is not a manifest"),
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
