"""Dense fields in the feed: the order of rows, clicks alone, many pages, and columns that cannot be."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from damaged_files import error_of, first_table, with_table
from slow_reading import feed_of, plan_of
from tiny_dataset import write_manifest, write_tiny_dataset

from pipeline.dataset.manifest import Manifest, ManifestField, load_manifest
from pipeline.errors import InputError
from pipeline.storage.parquet_files import PARQUET_OPTIONS
from training.feed.numeric import standardize

# A column of wide vectors is longer than a page of Parquet, 1 MB.
WIDTHS = {"user_taste": 3, "item_image": 700}
FLOATS = pa.list_(pa.field("element", pa.float32(), nullable=False))
Vectors = dict[int, tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Manifest, Vectors]:
    """A dataset of one file with two dense fields, its manifest, and impression_id → their vectors; a fifth is missing."""
    manifest = write_tiny_dataset(tmp_path, num_contexts=120, splits={"train": 1.0}, impressions_per_row_group=1000)
    assert len(manifest.files) == 1
    random, vectors = np.random.default_rng(2), {}
    table = first_table(tmp_path, manifest)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in WIDTHS}
    for ids in table["impression_id"].to_pylist():
        taste, *images = (
            np.where(random.random() < 0.2, np.nan, random.normal(1, 2, width)).astype(np.float32)
            for width in (3, *[700] * len(ids))
        )
        vectors |= {impression_id: (taste, image) for impression_id, image in zip(ids, images, strict=True)}
        columns["user_taste"].append(taste)
        columns["item_image"].append(np.concatenate(images))
    fields = list(manifest.fields)
    for name, scope in (("user_taste", "context"), ("item_image", "impression")):
        table = table.append_column(pa.field(name, FLOATS, nullable=False), pa.array(columns[name], FLOATS))
        entry = ManifestField(
            name, name, scope, "one", False, 0, "", "", kind="dense", parameters={"width": WIDTHS[name]}
        )
        fields.append(entry)
    schema = pa.schema([column.with_nullable(column.name == "group_id") for column in table.schema])
    manifest = with_table(
        tmp_path, dataclasses.replace(manifest, fields=tuple(fields)), table.cast(schema), **PARQUET_OPTIONS
    )
    write_manifest(tmp_path, manifest)
    return tmp_path, load_manifest(tmp_path), vectors


@pytest.mark.parametrize("unit", ["impressions", "clicks"])
def test_both_decoders_give_every_impression_its_own_vectors_in_every_order(
    own: tuple[Path, Manifest, Vectors], unit: str
) -> None:
    path, manifest, vectors = own
    seen = 0
    feeds = [feed_of(path, manifest, plan_of(manifest, unit=unit), decoder=name) for name in ("pages", "pyarrow")]
    for batch, same in zip(*(feed.batches(1) for feed in feeds), strict=True):
        np.testing.assert_array_equal(batch.context_numeric, same.context_numeric)
        np.testing.assert_array_equal(batch.impression_numeric, same.impression_numeric)
        for place, impression_id in enumerate(batch.impression_id.tolist()):
            taste, image = (np.nan_to_num(vector) for vector in vectors[impression_id])
            np.testing.assert_array_equal(batch.context_numeric[batch.context_of_impression[place]], taste)
            np.testing.assert_array_equal(batch.impression_numeric[place], image)
            seen += 1
    assert seen == plan_of(manifest, unit=unit).num_impressions


def test_a_batch_without_pieces_is_as_wide_as_any(own: tuple[Path, Manifest, Vectors]) -> None:
    path, manifest, _ = own
    feed = feed_of(path, manifest, plan_of(manifest, lanes=64, batch_size=64), rank=63, world_size=64)
    assert {batch.impression_numeric.shape[1] for batch in feed.batches(0)} == {700}


def changed(own: tuple[Path, Manifest, Vectors], column: str, row: int, vector: list[Any]) -> str:
    """What the feed says of one row's list in place of the right one."""
    path, manifest, _ = own
    table = first_table(path, manifest)
    rows = table[column].to_pylist()
    rows[row] = vector
    place = table.schema.get_field_index(column)
    kind = FLOATS if None not in vector else pa.list_(pa.float32())
    return error_of(path, with_table(path, manifest, table.set_column(place, column, pa.array(rows, kind))))


@pytest.mark.parametrize("vector", [[], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_a_list_of_another_length_is_refused(own: tuple[Path, Manifest, Vectors], vector: list[float]) -> None:
    found = changed(own, "user_taste", 1, vector)
    assert "column user_taste: lists that do not have 3 numbers for each context" in found


def test_lists_that_have_the_right_sum_and_the_wrong_lengths_are_refused(own: tuple[Path, Manifest, Vectors]) -> None:
    path, manifest, _ = own
    table = first_table(path, manifest)
    rows = table["item_image"].to_pylist()
    rows[0], rows[1] = [*rows[0], rows[1][0]], rows[1][1:]
    place = table.schema.get_field_index("item_image")
    wrong = with_table(path, manifest, table.set_column(place, "item_image", pa.array(rows, FLOATS)))
    assert "column item_image: lists that do not have 700 numbers for each impression" in error_of(path, wrong)


@pytest.mark.parametrize("vector", [[1.0, math.nan, 2.0], [math.inf, 1.0, 2.0], [math.nan, math.nan, -math.inf]])
def test_a_number_that_is_not_finite_is_refused(own: tuple[Path, Manifest, Vectors], vector: list[float]) -> None:
    found = changed(own, "user_taste", 0, vector)
    assert "column user_taste: a number that is not finite (a missing vector is NaNs alone)" in found


def test_a_null_within_a_vector_is_refused(own: tuple[Path, Manifest, Vectors]) -> None:
    assert "column user_taste: 1 nulls" in changed(own, "user_taste", 0, [1.0, None, 2.0])


def with_field(manifest: Manifest, **changes: Any) -> Manifest:
    fields = [
        dataclasses.replace(entry, **changes) if entry.name == "user_taste" else entry for entry in manifest.fields
    ]
    return dataclasses.replace(manifest, fields=tuple(fields))


@pytest.mark.parametrize(
    "moments",
    [
        {"mean": (0.0, 1.0), "std": (1.0, 1.0)},
        {"mean": (0.0, 1.0, math.nan), "std": (1.0, 1.0, 1.0)},
        {"mean": (0.0, 1.0, 2.0), "std": (1.0, -1.0, 1.0)},
        {"mean": 0.0, "std": 1.0},
    ],
)
def test_moments_that_cannot_be_are_refused(own: tuple[Path, Manifest, Vectors], moments: dict[str, Any]) -> None:
    path, manifest, _ = own
    with pytest.raises(InputError, match=r"dense field user_taste mean=.* and std=.*, which is not possible"):
        feed_of(path, with_field(manifest, **moments))


@pytest.mark.parametrize("width", [0, -1, "3", None])
def test_a_manifest_without_a_width_is_refused(own: tuple[Path, Manifest, Vectors], width: Any) -> None:
    wrong = with_field(own[1], parameters={"width": width})
    with pytest.raises(InputError, match=rf"user_taste' of kind=dense has width={width}, which is no width"):
        Manifest.from_json(wrong.to_json(), "here")


def test_a_number_that_never_varies_is_0_and_the_others_are_scaled_each_by_its_own_moments() -> None:
    entry = ManifestField(
        "x",
        "x",
        "context",
        "one",
        False,
        0,
        "",
        "",
        kind="dense",
        mean=(3.0, 1e8),
        std=(0.0, 16.0),
        parameters={"width": 2},
    )
    found = standardize(np.array([[3.0, 1e8 + 8], [4.0, 1e8 - 16]], np.float32), entry)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.0, 0.5], [0.0, -1.0]]
