"""Readers trust nothing: whatever is wrong with a file ends in one sentence, at the consumer, within seconds."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from damaged_files import error_of, first_table, with_content, with_table
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reading import feed_of, plan_of
from tiny_dataset import write_tiny_dataset

from pipeline.dataset.manifest import DatasetFile, Manifest
from pipeline.errors import InputError
from pipeline.storage.parquet_files import PARQUET_OPTIONS
from training.feed import row_groups


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path, write_tiny_dataset(tmp_path, num_contexts=60, splits={"train": 1.0})


def test_a_missing_file_is_named(own):
    path, manifest = own
    file = manifest.files[1]
    (path / file.path).unlink()
    assert error_of(path, manifest) == (
        f"{file.path} is missing, though the manifest names it; run jobs.preprocess again."
    )


def test_a_truncated_file_is_named_with_both_sizes(own):
    path, manifest = own
    file = manifest.files[0]
    (path / file.path).write_bytes((path / file.path).read_bytes()[:-100])
    assert f"{file.path} has {file.bytes - 100} bytes where the manifest says {file.bytes}" in error_of(path, manifest)


def test_a_changed_byte_is_found_by_the_checksum(own):
    path, manifest = own
    file = manifest.files[0]
    content = bytearray((path / file.path).read_bytes())
    content[len(content) // 3] ^= 1
    (path / file.path).write_bytes(content)
    assert f"{file.path} has the checksum" in error_of(path, manifest, verify="checksum")


def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path):
    path, manifest = tmp_path, write_tiny_dataset(tmp_path, row_groups_per_file=100, splits={"train": 1.0})
    feed = feed_of(path, manifest, plan_of(manifest, lanes=1, batch_size=8), batches_ahead=1, row_groups_ahead=1)
    batches = feed.batches(0)
    next(batches)
    (path / manifest.files[0].path).write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"\.parquet has 4 bytes where the manifest says \d+; run jobs.preprocess again"
    ):
        list(batches)


def test_a_file_that_is_no_parquet_is_an_error(own):
    path, manifest = own
    assert "cannot be read" in error_of(path, with_content(path, manifest, b"not parquet" * 100))


@pytest.mark.parametrize(
    ("column", "kind", "wanted"),
    [
        ("item_id", pa.list_(pa.int64()), "list<element: int32 not null>"),
        ("user_id", pa.string(), "int32"),
        ("group_id", pa.int32(), "int64"),
    ],
)
def test_a_column_of_another_type_is_named_with_both_types(own, column, kind, wanted):
    path, manifest = own
    table = first_table(path, manifest)
    place = table.schema.get_field_index(column)
    changed = with_table(path, manifest, table.set_column(place, column, table.column(column).cast(kind)))
    message = error_of(path, changed)
    assert f"{manifest.files[0].path}, column {column} has type" in message
    assert f"imply {wanted};" in message


def test_a_missing_column_is_named(own):
    path, manifest = own
    changed = with_table(path, manifest, first_table(path, manifest).drop_columns(["user_brands__weight"]))
    assert "column user_brands__weight is missing" in error_of(path, changed)


def test_a_footer_with_other_row_groups_is_an_error(own):
    path, manifest = own
    first = manifest.files[0]
    fewer = dataclasses.replace(first, row_groups=first.row_groups[:-1])
    assert "3 row groups where the manifest says 2" in error_of(
        path, dataclasses.replace(manifest, files=(fewer, *manifest.files[1:]))
    )
    group = first.row_groups[0]
    longer = dataclasses.replace(
        first, row_groups=(dataclasses.replace(group, rows=group.rows + 1), *first.row_groups[1:])
    )
    message = error_of(path, dataclasses.replace(manifest, files=(longer, *manifest.files[1:])))
    assert f"row group 0 has {group.rows} rows where the manifest says {group.rows + 1}" in message


def spoiled(rows: list[dict[str, Any]], column: str, value: Any) -> Iterator[dict[str, Any]]:
    """The rows with `value` as the first value of `column` that there is; a callable changes a whole row."""
    done = False
    for row in rows:
        changed = dict(row)
        if not done and callable(value):
            value(changed)
            done = changed != row
        elif not done and isinstance(row[column], list) and row[column]:
            changed[column], done = [value, *row[column][1:]], True
        elif not done and not isinstance(row[column], list):
            changed[column], done = value, True
        yield changed
    assert done


def longer(column: str, value: Any) -> Any:
    def change(row: dict[str, Any]) -> None:
        row[column] = [*row[column], value]

    return change


def shifted_lengths(row: dict[str, Any]) -> None:
    """One length up and one down: the sum stays, so only a negative length shows."""
    lengths = row["item_intention__length"]
    if len(lengths) > 1:
        row["item_intention__length"] = [lengths[0] + lengths[1] + 1, -1, *lengths[2:]]


def optional(schema: pa.Schema) -> pa.Schema:
    """The same columns, each of which may be null."""
    return pa.schema(
        [
            (name, pa.list_(kind.value_type) if pa.types.is_list(kind) else kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
    )


@pytest.mark.parametrize(
    "options", [PARQUET_OPTIONS, {}], ids=["as written by jobs.preprocess", "as written by pyarrow"]
)
@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("item_id", 50, "the index 50, outside 0 to 49 of the vocabulary"),
        ("item_id", -1, "the index -1, outside 0 to 49"),
        ("user_id", 40, "the index 40, outside 0 to 39"),
        ("user_brands", 2**31 - 1, "the index 2147483647, outside 0 to 29"),
        ("user_item_brands", -5, "the index -5, outside 0 to 24"),
        ("user_item_brands__weight", math.nan, "a weight that is not finite"),
        ("user_brands__weight", math.inf, "a weight that is not finite"),
        ("user_brands__weight", -math.inf, "a weight that is not finite"),
        ("click", 2, "a label that is neither 0 nor 1"),
        ("conversion", -1, "a label that is neither 0 nor 1"),
        ("item_id", None, "1 nulls"),
        ("user_id", None, "1 nulls"),
        ("context_id", None, "1 nulls"),
        ("item_id", longer("item_id", 1), "lists of another length than impression_id's"),
        ("click", longer("click", 0), "lists of another length than impression_id's"),
        ("user_brands__weight", longer("user_brands__weight", 1.0), "lists of another length than user_brands's"),
        ("item_intention__length", shifted_lengths, "the length -1"),
        ("item_intention__length", longer("item_intention", 1), "lengths that do not add up"),
        ("user_item_brands__length", 77, "lengths that do not add up"),
        ("impression_id", longer("impression_id", 1), "impressions, and the manifest says"),
    ],
)
def test_a_damaged_row_group_is_named_with_its_column_and_what_was_found(own, column, value, found, options):
    path, manifest = own
    table = first_table(path, manifest)
    rows = list(spoiled(table.to_pylist(), column, value))
    schema = optional(table.schema) if value is None else table.schema
    changed = with_table(path, manifest, pa.Table.from_pylist(rows, schema=schema), **options)
    message = error_of(path, changed)
    assert message.startswith(f"{manifest.files[0].path}, row group 0, column {column}: ")
    assert found in message
    assert message.endswith("run jobs.preprocess again.")


@pytest.mark.parametrize("label", ["clicks", "conversions"])
def test_a_count_that_is_not_the_manifests_is_an_error(own, label):
    path, manifest = own
    first = manifest.files[0]
    group = first.row_groups[0]
    wrong = dataclasses.replace(group, **{label: getattr(group, label) + 1})
    forged: DatasetFile = dataclasses.replace(first, row_groups=(wrong, *first.row_groups[1:]))
    message = error_of(path, dataclasses.replace(manifest, files=(forged, *manifest.files[1:])))
    assert f"{getattr(group, label)} positives, and the manifest says {getattr(group, label) + 1}" in message


@given(
    st.lists(
        st.lists(st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda w: w == 0 or abs(w) > 2.0**-60), max_size=20),
        max_size=20,
    )
)
@pytest.mark.parametrize("kernel", [row_groups._divide_long, row_groups._divide_short])
@settings(deadline=None)  # the first example compiles
def test_mean_pooling_divides_by_the_sum_of_absolute_weights(kernel, bags):
    weights = np.array([weight for bag in bags for weight in bag], np.float32)
    offsets = np.cumsum([0, *map(len, bags)]).astype(np.int32)
    expected = []
    for bag in bags:
        total = math.fsum(abs(weight) for weight in bag)
        expected += [weight / total if total else 0.0 for weight in bag]
    kernel(weights, offsets)
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-30)
