"""Tables as shops really have them, one small case each: every value is read exactly, or its row is rejected."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from events_reading import HEADER, read_impressions, settings_of
from references.events_rows import raw_id

from pipeline.config.features import FieldSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Rows = dict[str, dict[str, Any]]
CSV = {"path": "imp.csv", "format": "csv"}
CAT = FieldSettings("cat", "impression")
TAGS = FieldSettings("tags", "impression", "many")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def column(rows: Rows, name: str) -> list[Any]:
    return [row[name] for _, row in sorted(rows.items())]


def write_csv(root: Path, header: str, *lines: str) -> None:
    (root / "imp.csv").write_text("\n".join([header, *lines]) + "\n")


def write_parquet(root: Path, *tables: pa.Table) -> None:
    (root / "imp").mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, root / "imp" / f"{number}.parquet")


def impressions(num: int = 2, **columns: Any) -> pa.Table:
    numbers = list(range(1, num + 1))
    made = {"id": numbers, "user": ["u"] * num, "item": numbers, "view": ["v"] * num, "at": numbers}
    return pa.table(made | columns)


PARQUET = {"path": "imp"}


def test_click_flags_as_pandas_and_spark_write_them_are_labels(spark: "SparkSession", root: Path) -> None:
    shown, not_shown = ["True", "TRUE", "true", "1", "1.", "1.0", "1.00"], ["False", "false", "0", "0.0", "0.", "FALSE"]
    texts = [*shown, *not_shown]
    write_csv(root, f"{HEADER},clk", *(f"{n},u,{n},v,{n},{text}" for n, text in enumerate(texts, 10)))
    found = read_impressions(spark, root, settings_of(CSV | {"click": "clk"}))
    assert set(column(found, "status")) == {"good"}
    assert column(found, "clicked") == [True] * len(shown) + [False] * len(not_shown)


@pytest.mark.parametrize("bad", ["2", "yes", "1.5", "1,0", "", "-1", "10", "0.01", "nan"])
def test_any_other_flag_is_a_bad_label(spark: "SparkSession", root: Path, bad: str) -> None:
    write_csv(root, f"{HEADER},clk", f'1,u,1,v,1,"{bad}"', "2,u,1,v,1,1")
    found = read_impressions(spark, root, settings_of(CSV | {"click": "clk"}))
    assert column(found, "status") == ["bad_label", "good"]


@pytest.mark.parametrize("flags", [pa.array([True, False]), pa.array([1.0, 0.0]), pa.array([1, 0], pa.int8())])
def test_click_flags_of_parquet_have_any_type_of_number_or_bool(
    spark: "SparkSession", root: Path, flags: pa.Array
) -> None:
    write_parquet(root, impressions(clk=flags))
    found = read_impressions(spark, root, settings_of(PARQUET | {"click": "clk"}))
    assert (column(found, "status"), column(found, "clicked")) == (["good", "good"], [True, False])


def test_one_trailing_separator_ends_a_list_and_two_are_a_gap(spark: "SparkSession", root: Path) -> None:
    lists = ["a|b|", "a|b", "a|b||", "|", "", "a|"]
    write_csv(root, f"{HEADER},tags", *(f"{n},u,{n},v,{n},{text}" for n, text in enumerate(lists, 1)))
    found = read_impressions(spark, root, settings_of(CSV), tags=TAGS)
    a, b = raw_id("a"), raw_id("b")
    assert column(found, "status") == ["good", "good", "bad_feature", "bad_feature", "good", "good"]
    assert [column(found, "tags")[place] for place in (0, 1, 4, 5)] == [[a, b], [a, b], [], [a]]


def test_what_nulls_names_is_a_gap_in_a_list_of_every_format(spark: "SparkSession", root: Path) -> None:
    lists = [[7, 0, 9], [5]]
    write_csv(root, f"{HEADER},tags", "1,u,1,v,1,7|0|9", "2,u,2,v,2,5")
    write_parquet(root, impressions(tags=lists))
    lines = [{"id": n, "user": "u", "item": n, "view": "v", "at": n, "tags": tags} for n, tags in enumerate(lists, 1)]
    (root / "imp.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, table in enumerate((CSV, PARQUET, {"path": "imp.jsonl", "format": "jsonl"})):
        (root.parent / f"{number}").mkdir()
        link = root.parent / f"{number}" / "raw"
        link.symlink_to(root)
        found = read_impressions(spark, link, settings_of(table, nulls=["", "0"]), tags=TAGS)
        assert column(found, "status") == ["bad_feature", "good"]
        assert column(found, "tags")[1] == [5]


def test_a_date_is_the_midnight_of_its_day_in_utc(spark: "SparkSession", root: Path) -> None:
    write_parquet(root, impressions(at=pa.array([19845, 19846], pa.date32())))
    found = read_impressions(spark, root, settings_of(PARQUET))
    assert column(found, "at") == [19845 * 86_400_000, 19846 * 86_400_000]


def test_a_join_may_be_json_lines(spark: "SparkSession", root: Path) -> None:
    write_csv(root, HEADER, "1,u,100,v,1", "2,u,101,v,2")
    (root / "items.jsonl").write_text('{"item": 100, "cat": "shoes"}\n{"item": 7, "cat": "hats"}\n')
    settings = settings_of(CSV, joins=({"path": "items.jsonl", "format": "jsonl", "by": ["item"]},))
    found = read_impressions(spark, root, settings, cat=CAT)
    assert column(found, "cat") == [raw_id("shoes"), None]
