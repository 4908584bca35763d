"""Numeric fields: exact moments in any order, against fractions; and the whole chain with them."""

import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import mean, pvariance

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_checks import assert_dataset_equals_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_log import context_line, impression_line, key_of, random_log, small_log

from pipeline.aliccp import parse
from pipeline.aliccp.field_probe import names_of
from pipeline.chunks import line_columns
from pipeline.chunks.chunk import numbers_of
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.config.preprocess import PreprocessSettings
from pipeline.features.fields import catalogue
from pipeline.features.moments import Moments
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")
NUMERIC = (
    "features=aliccp_numeric",
    "+features.fields.gender_weight={raw_id: '124', scope: context, kind: numeric}",  # always 1.0
    "~features.fields.user_brands",
    "+features.fields.brand_strength={raw_id: '127_14', scope: context, kind: numeric}",  # its ids are no field
    "+features.fields.never={raw_id: '77', scope: context, kind: numeric}",
)


@settings(deadline=None)  # the kernel is compiled on the first call
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.randoms())
def test_moments_of_any_floats_are_the_exact_ones_rounded_once_in_whatever_order_tasks_add_them(
    numbers: list[float], order: random.Random
) -> None:
    shuffled = numbers.copy()
    order.shuffle(shuffled)
    merged = Moments(2)
    for part in np.array_split(np.array(shuffled, np.float32), 3):
        task = Moments(2)
        task.add(np.column_stack([np.full(len(part), np.nan, np.float32), part]))
        merged.merge(task.to_bytes())
    exact = [Fraction(number) for number in numbers]
    assert merged.mean_std(1) == (float(mean(exact)), math.sqrt(pvariance(exact)))
    assert merged.mean_std(0) == (0.0, 0.0)


def test_a_million_equal_numbers_have_no_deviation_at_all() -> None:
    moments = Moments(1)
    moments.add(np.full((1_000_000, 1), 0.1, np.float32))
    assert moments.mean_std(0) == (float(np.float32(0.1)), 0.0)


def test_the_number_of_a_line_is_the_one_behind_the_first_id_whether_or_not_a_field_takes_the_ids() -> None:
    fields = catalogue(
        FeaturesSettings(
            {
                "cross": FieldSettings("702", "impression", "many", True),
                "affinity": FieldSettings("702", "impression", kind="numeric"),
                "price": FieldSettings("9", "impression", kind="numeric"),
            }
        ),
        1,
    )
    lines = [
        impression_line(1, 0, 0, key_of(1), [("702", 5, "0.5"), ("9", 0, "-3e2"), ("702", 4, "2"), ("9", 1, "7")]),
        impression_line(2, 0, 0, key_of(1), []),
        impression_line(3, 0, 0, key_of(1), [("702", 5, "-0.0")]),
    ]
    parsed = parse.parse(b"\n".join([*lines, b""]), True, names_of(fields, "impression"))
    number_LQ = numbers_of(parsed, fields.number_places(fields.measured))
    np.testing.assert_array_equal(number_LQ, np.array([[0.5, -300], [np.nan, np.nan], [-0.0, np.nan]], np.float32))
    assert [fields.fields[number].name for number in parsed.field_V] == ["cross", "price", "cross", "cross"]
    assert parsed.line_table[0, line_columns.REPEATED] == 1


@pytest.mark.usefixtures("spark")
def test_numbers_means_and_deviations_of_a_dataset_equal_the_reference_and_no_split_of_the_input_changes_them(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = random_log(7, interleaved=True).write(tmp_path / "raw")
    chosen = preprocess_settings(raw, tmp_path / "out", *SMALL, *NUMERIC)
    manifest = preprocess(chosen)
    assert_dataset_equals_reference(raw, tmp_path / "out", chosen)
    by_name = {entry.name: entry for entry in manifest.fields}
    assert by_name["user_item_categories_affinity"].std > 0
    assert (by_name["gender_weight"].mean, by_name["gender_weight"].std) == (1.0, 0.0)
    assert (by_name["never"].mean, by_name["never"].std) == (0.0, 0.0)
    again = preprocess_settings(raw, tmp_path / "again", *SMALL, *NUMERIC, "source.split_bytes=3000")
    preprocess(again)
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (tmp_path / "out" / "manifest.json").read_bytes()


@pytest.mark.usefixtures("spark")
def test_a_missing_number_is_null_and_the_schema_says_so_of_numbers_alone(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    log = small_log()
    features = [("205", 1, "1.0"), ("508", 3, "0.5"), ("508", 4, "9")]
    log.lines["sample_skeleton_test"] = [
        impression_line(number, 0, 0, key_of(1), features[: 2 * number]) for number in (0, 1)
    ]
    log.lines["common_features_test"] = [context_line(key_of(1), [("101", 1, "1.0")])]
    raw = log.write(tmp_path / "raw")
    manifest = preprocess(preprocess_settings(raw, tmp_path / "out", *NUMERIC))
    (file,) = manifest.files_of("test")
    table = pq.read_table(tmp_path / "out" / file.path)
    (row,) = table.to_pylist()
    assert (row["user_item_categories_affinity"], row["brand_strength"]) == ([None, 0.5], None)
    assert {name for name in table.schema.names if table.schema.field(name).nullable} == {
        "group_id", "gender_weight", "brand_strength", "never",
    }  # fmt: skip
    lists = [entry for entry in table.schema if entry.type.num_fields and entry.type.value_field.nullable]
    assert [entry.name for entry in lists] == [
        f"user_item_{what}_affinity" for what in ("categories", "shops", "brands", "intentions")
    ]
    audit = manifest.audit["left_out"]
    assert audit["test"] == {"unknown_features": 0, "repeated_values": 0}
