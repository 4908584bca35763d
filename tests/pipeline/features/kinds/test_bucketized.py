"""Bucketized fields: numbers become the indices of their buckets, whatever else takes the same raw id."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_checks import assert_dataset_equals_reference, bucket_of
from hypothesis import given
from hypothesis import strategies as st
from raw_log import random_log

from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.features.fields import catalogue
from pipeline.features.kinds.bucketized import bucket_indices
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=1, max_size=9, unique=True).map(sorted), st.lists(st.none() | FLOATS, max_size=30))
def test_every_number_falls_into_the_bucket_that_a_loop_finds(
    boundaries: list[float], numbers: list[float | None]
) -> None:
    numbers = [*numbers, *boundaries]
    given_numbers = np.array([math.nan if number is None else number for number in numbers], np.float32)
    assert bucket_indices(given_numbers, boundaries).tolist() == [bucket_of(number, boundaries) for number in numbers]


def test_a_number_on_a_boundary_is_in_the_bucket_above_it_and_infinities_are_in_the_outermost() -> None:
    numbers = np.array([-math.inf, 0.999, 1, 4.999, 5, 20, math.inf, math.nan], np.float32)
    assert bucket_indices(numbers, [1.0, 5.0, 20.0]).tolist() == [2, 2, 3, 3, 4, 5, 5, 0]
    there = ~np.isnan(numbers)
    expected = 2 + np.digitize(numbers[there], np.array([1, 5, 20], np.float32))
    assert bucket_indices(numbers[there], [1.0, 5.0, 20.0]).tolist() == expected.tolist()


def test_a_logged_number_equals_the_boundary_that_is_written_like_it() -> None:
    assert float(np.float32(0.7)) < 0.7  # as float64 it would fall below
    assert bucket_indices(np.array([0.7], np.float32), [0.7]).tolist() == [3]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "a is bucketized without boundaries; give them"),
        ({"boundaries": []}, "a is bucketized without boundaries; give them"),
        ({"boundaries": [1.0, 1.0]}, "a.boundaries has 1.0 before 1.0; they must rise"),
        ({"boundaries": [5.0, 1.0]}, "a.boundaries has 5.0 before 1.0; they must rise"),
        ({"boundaries": [16777216.0, 16777217.0]}, "has 16777216.0 before 16777217.0; they must rise, as float32 too"),
        ({"boundaries": [math.nan]}, "a.boundaries has nan, which is no finite float32"),
        ({"boundaries": [1e39]}, "which is no finite float32"),
        ({"boundaries": [1.0], "arity": "many"}, "a is bucketized with arity=many, weighted=False"),
        ({"boundaries": [1.0], "min_count": 3}, "a.min_count=3 is for a field of kind categorical, .* is bucketized"),
        ({"boundaries": [1.0], "kind": "numeric"}, "is for a field of kind bucketized, and the field is numeric"),
        ({"boundaries": [1.0], "kind": "categorical"}, "of kind bucketized, and the field is categorical"),
    ],
)
def test_settings_that_no_bucketized_field_can_have_are_named(settings: dict, sentence: str) -> None:
    entry = FieldSettings("1", "context", **({"kind": "bucketized"} | settings))
    with pytest.raises(InputError, match=sentence):
        catalogue(FeaturesSettings({"a": entry}), 2)


@pytest.mark.usefixtures("spark")
def test_buckets_of_a_dataset_equal_the_reference_beside_ids_beside_numbers_and_alone(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = random_log(7, interleaved=True).write(tmp_path / "raw")
    fields = (
        "features=aliccp_bucketized",
        "+features.fields.categories_affinity={raw_id: '508', scope: impression, kind: numeric}",  # three of one raw id
        "~features.fields.user_brands",
        "+features.fields.brand_strength={raw_id: '127_14', scope: context, kind: numeric}",  # no field takes its ids
        "+features.fields.brand_bucket={raw_id: '127_14', scope: context, kind: bucketized, boundaries: [0.5, 2]}",
        "+features.fields.never={raw_id: '77', scope: context, kind: bucketized, boundaries: [0]}",
    )
    chosen = preprocess_settings(raw, tmp_path / "out", *SMALL, *fields)
    manifest = preprocess(chosen)
    assert_dataset_equals_reference(raw, tmp_path / "out", chosen)
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())["fields"]
    found = audit["brand_bucket"]["train"]
    assert found["values"] > 0
    assert found["records"] == found["values"] + found["without"]
    assert found["out_of_vocabulary"] == 0
    assert audit["never"]["train"]["values"] == 0
    raw_fields = json.loads((tmp_path / "out" / "manifest.json").read_text())["fields"]
    with_parameters = {entry["name"] for entry in raw_fields if "parameters" in entry}
    assert with_parameters == {entry.name for entry in manifest.fields if entry.kind == "bucketized"}
