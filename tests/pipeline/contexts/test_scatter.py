"""Scattered pieces: the same rows as without, each exactly once, spread over the split; everything else as it was."""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_checks import assert_quarantine_equals
from raw_log import random_log
from references.aliccp import read_period

from pipeline.config.preprocess import PreprocessSettings
from pipeline.contexts.buckets import buckets_of
from pipeline.contexts.scatter import _places
from pipeline.dataset.manifest import Manifest
from pipeline.features.fields import catalogue
from pipeline.preprocess import preprocess

SMALL = ("rows.max_impressions=3", "rows.impressions_per_row_group=40", "rows.impressions_per_file=150")


def rows_in_order(out: Path, manifest: Manifest, split: str) -> list[dict[str, Any]]:
    files = [file for file in manifest.files if file.split == split]
    return [row for file in files for row in pq.read_table(out / file.path).to_pylist()]


def neighbours(rows: list[dict[str, Any]]) -> int:
    """Rows that stand behind a row of the same context."""
    keys = [row["context_id"] for row in rows]
    return sum(one == other for one, other in itertools.pairwise(keys))


@pytest.mark.usefixtures("spark")
def test_scattering_moves_rows_and_changes_nothing_else(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw = random_log(1).write(tmp_path / "raw")
    found = {}
    for scatter in ("false", "true"):
        settings = preprocess_settings(raw, tmp_path / scatter, *SMALL, f"rows.scatter_chunks={scatter}")
        found[scatter] = preprocess(settings)
    together, apart = found["false"], found["true"]
    assert together.totals == apart.totals
    assert {**together.audit, "quarantine": None} == {**apart.audit, "quarantine": None}
    assert together.settings_xxh3 != apart.settings_xxh3
    books = [json.loads((tmp_path / name / "audit.json").read_text()) for name in ("false", "true")]
    other = {"quarantine": None, "manifest_xxh3": None}
    assert {**books[0], **other} == {**books[1], **other}
    for split in ("train", "validation", "test"):
        before, after = (rows_in_order(tmp_path / name, found[name], split) for name in ("false", "true"))
        if split != "validation":  # which has three contexts
            assert neighbours(before) > len(before) / 3
            assert neighbours(after) < neighbours(before) / 4
        by_first = {row["impression_id"][0]: row for row in after}
        assert len(by_first) == len(before) == len(after)
        assert all(by_first[row["impression_id"][0]] == row for row in before)
    fields = catalogue(settings.features, settings.vocabulary.min_count)
    periods = {period: read_period(raw, period, fields, asdict(settings.checks)) for period in ("train", "test")}
    assert_quarantine_equals(tmp_path / "true", apart, periods)


@pytest.mark.usefixtures("spark")
def test_the_dataset_is_the_same_for_other_input_splits(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw = random_log(4, num_contexts=20).write(tmp_path / "raw")
    texts = set()
    for number, split_bytes in enumerate((3000, 1 << 26)):
        out = tmp_path / str(number)
        preprocess(
            preprocess_settings(raw, out, *SMALL, "rows.scatter_chunks=true", f"source.split_bytes={split_bytes}")
        )
        texts.add((out / "manifest.json").read_bytes())
    assert len(texts) == 1


def test_a_first_piece_keeps_its_contexts_place_and_no_two_pieces_share_one() -> None:
    hash_N = np.repeat(np.random.default_rng(1).integers(0, 2**64, 500, np.uint64), 7)
    place_N = _places(hash_N)
    assert (place_N[::7] == hash_N[::7]).all()
    assert len(np.unique(place_N)) == len(place_N)
    shares = np.histogram(place_N / 2.0**64, bins=10, range=(0, 1))[0] / len(place_N)
    assert abs(shares - 0.1).max() < 0.03


def test_a_piece_goes_to_the_file_of_its_place() -> None:
    buckets = buckets_of((1000, 10, 10), 0, 100, seed=1)
    place_N = np.array([0, 2**63, 2**64 - 1], np.uint64)
    key_N, sorted_N = buckets.of_places(place_N, np.zeros(3, np.int64))
    assert [buckets.place(int(key)) for key in key_N] == [("train", 0), ("train", 5), ("train", 9)]
    assert (np.diff(sorted_N.astype(object)) > 0).all()
