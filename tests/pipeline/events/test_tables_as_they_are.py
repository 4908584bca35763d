"""Tables as shops really have them, one small case each: every value is read exactly, or its row is rejected."""

import bz2
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from events_reading import HEADER, find, read_impressions, settings_of
from references.events_rows import raw_id

from pipeline.chunks.sources import SourceFile
from pipeline.config.features import FieldSettings
from pipeline.errors import InputError
from pipeline.events.parquet_rows import read_row_groups, row_groups_of

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


def test_any_other_flag_is_a_bad_label(spark: "SparkSession", root: Path) -> None:
    flags = ["2", "yes", "1.5", "1,0", "", "-1", "10", "0.01", "nan"]
    write_csv(root, f"{HEADER},clk", "1,u,1,v,1,1", *(f'{n},u,1,v,1,"{text}"' for n, text in enumerate(flags, 2)))
    found = read_impressions(spark, root, settings_of(CSV | {"click": "clk"}))
    assert sorted(column(found, "status")) == ["bad_label"] * len(flags) + ["good"]


@pytest.mark.parametrize("flags", [pa.array([True, False]), pa.array([1.0, 0.0])])
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


ITEMS = ({"path": "items.csv", "format": "csv", "by": ["item"]},)


def test_a_join_with_too_many_or_too_few_columns_in_a_line_gives_no_wrong_features(
    spark: "SparkSession", root: Path
) -> None:
    write_csv(root, HEADER, *(f"{n},u,{n},v,1" for n in (100, 101, 102)))
    (root / "items.csv").write_text("item,title,cat\n100,shoe,shoes\n101,bag, leather, large,bags\n102,hat\n")
    found = read_impressions(spark, root, settings_of(CSV, joins=ITEMS), cat=CAT)
    assert column(found, "cat") == [raw_id("shoes"), None, None]


def test_nanoseconds_are_read_exactly_and_columns_nobody_needs_do_not_matter(spark: "SparkSession", root: Path) -> None:
    stamps = [1_714_644_000_123_456_789, 1_714_644_000_999_999_999]
    odd = {
        "taken": pa.array([1, 2], pa.duration("ns")), "none": pa.nulls(2), "clock": pa.array([1, 2], pa.time64("ns")),
        "where": pa.array([{"x": 1}, None]), "pairs": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    }  # fmt: skip
    write_parquet(root, impressions(at=pa.array(stamps, pa.timestamp("ns")), **odd))
    assert column(read_impressions(spark, root, settings_of(PARQUET)), "at") == [ns // 1_000_000 for ns in stamps]


@pytest.mark.parametrize("zone", [None, "Asia/Shanghai"])
def test_times_by_type_are_moments_whatever_their_unit_and_zone(
    spark: "SparkSession", root: Path, zone: str | None
) -> None:
    write_parquet(root, *(impressions(1, id=[n], at=pa.array([5 * 10**k], pa.timestamp(unit, zone))) for n, (unit, k) in enumerate([("s", 0), ("ms", 3), ("us", 6), ("ns", 9)])))  # fmt: skip
    assert column(read_impressions(spark, root, settings_of(PARQUET)), "at") == [5000] * 4


def test_times_of_96_bits_are_read_beyond_2262_by_either_reader(spark: "SparkSession", root: Path) -> None:
    table = impressions(1, at=pa.array([253_402_300_000_000_000], pa.timestamp("us")))
    pq.write_table(table, root / "plain", use_deprecated_int96_timestamps=True)
    pq.write_table(table.append_column("odd", pa.nulls(1)), root / "odd", use_deprecated_int96_timestamps=True)
    for name, by_spark in (("plain", True), ("odd", False)):
        (link := root.parent / name).symlink_to(root)
        settings = settings_of({"path": name})
        assert find(link, settings)[0].impressions.by_spark is by_spark
        assert column(read_impressions(spark, link, settings), "at") == [253_402_300_000_000]


def fields_of(columns: dict[str, Any], arity: str = "one") -> dict[str, FieldSettings]:
    return {name: FieldSettings(name, "impression", arity) for name in columns}


def test_text_and_whole_numbers_of_any_type_are_ids(spark: "SparkSession", root: Path) -> None:
    texts = {f"t{n}": pa.array(["a", "b"]).cast(kind) for n, kind in enumerate((pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())))}  # fmt: skip
    numbers = {f"n{n}": pa.array([7, 100]).cast(kind) for n, kind in enumerate((pa.uint64(), pa.int8(), pa.decimal128(20, 0), pa.uint16()))}  # fmt: skip
    write_parquet(root, impressions(odd=pa.nulls(2), **texts, **numbers))
    found = read_impressions(spark, root, settings_of(PARQUET), **fields_of(texts | numbers))
    for name in texts:
        assert column(found, name) == [raw_id("a"), raw_id("b")]
    for name in numbers:
        assert column(found, name) == [7, 100]


def test_lists_of_any_kind_are_lists(spark: "SparkSession", root: Path) -> None:
    kinds = [
        pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2),
        pa.list_(pa.dictionary(pa.int32(), pa.string())), pa.list_(pa.large_string()),
    ]  # fmt: skip
    lists = {f"l{n}": pa.array([["a", "b"], None], kind) for n, kind in enumerate(kinds)}
    write_parquet(root, impressions(odd=pa.nulls(2), **lists))
    found = read_impressions(spark, root, settings_of(PARQUET), **fields_of(lists, "many"))
    for name in lists:
        assert column(found, name) == [[raw_id("a"), raw_id("b")], []]


def test_booleans_dates_and_nothing_are_ids_by_their_text(spark: "SparkSession", root: Path) -> None:
    days = pa.array([19845, None], pa.date32())
    write_parquet(root, impressions(cat=pa.array([True, False]), day=days, gone=pa.nulls(2)))
    found = read_impressions(
        spark, root, settings_of(PARQUET), cat=CAT, day=FieldSettings("day", "impression"), gone=FieldSettings("gone", "impression")
    )  # fmt: skip
    assert column(found, "cat") == [raw_id("true"), raw_id("false")]
    assert column(found, "day") == [raw_id("2024-05-02"), None]
    assert column(found, "gone") == [None, None]


def test_fields_of_structs_are_named_by_their_path(spark: "SparkSession", root: Path) -> None:
    structs = [{"id": "anna", "at": {"city": "Oslo"}}, {"id": "bob", "at": None}]
    table = impressions(user=structs, odd=pa.nulls(2))
    write_parquet(root, table)
    pq.write_table(table.drop_columns("odd"), root / "plain.parquet")  # Spark's own reader takes this one
    lines = [{"id": n, "user": user, "item": n, "view": "v", "at": n} for n, user in enumerate(structs, 1)]
    (root / "imp.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    city = FieldSettings("user.at.city", "context")
    for number, where in enumerate((PARQUET, {"path": "plain.parquet"}, {"path": "imp.jsonl", "format": "jsonl"})):
        link = root.parent / str(number)
        link.symlink_to(root)
        found = read_impressions(spark, link, settings_of(where | {"user": ["user.id"]}), city=city)
        assert column(found, "user") == ["anna", "bob"]
        assert column(found, "city") == [raw_id("Oslo"), None]


def test_a_column_with_a_dot_in_its_name_is_that_column(spark: "SparkSession", root: Path) -> None:
    write_parquet(
        root, impressions(**{"user.id": ["x", "y"], "user": [{"id": "no"}, {"id": "no"}], "odd": pa.nulls(2)})
    )
    found = read_impressions(spark, root, settings_of(PARQUET | {"user": ["user.id"]}))
    assert column(found, "user") == ["x", "y"]


def test_parts_whose_types_differ_are_widened(spark: "SparkSession", root: Path) -> None:
    cases = {
        "longer": (pa.array([7], pa.int32()), pa.array([1 << 40], pa.int64()), [7, 1 << 40]),
        "empty": (pa.array([7], pa.int64()), pa.nulls(1), [7, None]),
        "category": (pa.nulls(1), pa.array(["a"]).dictionary_encode(), [None, raw_id("a")]),
        "signed": (pa.array([7], pa.uint64()), pa.array([-8], pa.int8()), [7, raw_id("-8")]),
        "large": (pa.array(["a"]), pa.array(["b"], pa.large_string()), [raw_id("a"), raw_id("b")]),
    }
    first, second = ({name: case[place] for name, case in cases.items()} for place in (0, 1))
    write_parquet(root, impressions(1, **first), impressions(1, id=[2], **second))
    found = read_impressions(spark, root, settings_of(PARQUET), **fields_of(cases))
    assert {name: column(found, name) for name in cases} == {name: case[2] for name, case in cases.items()}


def test_row_groups_are_read_in_pieces(root: Path) -> None:
    table = impressions(7)
    pq.write_table(table, root / "f.parquet", row_group_size=2)
    source = SourceFile(0, "f.parquet", str(root / "f.parquet"), (root / "f.parquet").stat().st_size, "", "", False)
    for split_bytes, num_pieces in ((1, 4), (1 << 30, 1)):
        pieces = row_groups_of(source, 0, split_bytes)
        assert len(pieces) == num_pieces
        read = [batch for piece in pieces for batch in read_row_groups(piece, {"id": pa.int64()})]
        assert pa.concat_arrays([column for (column,) in read]).to_pylist() == table["id"].to_pylist()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_long_file_is_cut_between_rows_and_not_within_quotes(spark: "SparkSession", root: Path, form: str) -> None:
    rows = [(n, f"k{n}\n{'x' * (n % 60)}\nend") for n in range(3000)]
    if form == "csv":
        write_csv(root, f"{HEADER},cat", *(f'{n},u,{n},v,1,"{cat}"' for n, cat in rows))
    else:
        lines = [{"id": n, "user": "u", "item": n, "view": "v", "at": 1, "cat": cat} for n, cat in rows]
        (root / "imp.csv").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (root / "imp.csv").stat().st_size > 2 << 16
    found = read_impressions(spark, root, settings_of(CSV | {"format": form}), cat=CAT)
    assert {int(id_): row["cat"] for id_, row in found.items()} == {n: raw_id(cat) for n, cat in rows}


def test_numbers_are_widened_where_they_stay_the_same_and_named_where_not(spark: "SparkSession", root: Path) -> None:
    price = FieldSettings("price", "impression", kind="numeric")
    write_parquet(root, impressions(1, price=[5]), impressions(1, id=[2], price=[0.5]))
    assert column(read_impressions(spark, root, settings_of(PARQUET), price=price), "price") == [5.0, 0.5]
    pq.write_table(impressions(1, price=[(1 << 53) + 1]), root / "imp/2.parquet")
    link = root.parent / "again"
    link.symlink_to(root)
    with pytest.raises(InputError, match=r"2.parquet has a value in the column 'price' .* does not hold exactly"):  # fmt: skip
        read_impressions(spark, link, settings_of(PARQUET), price=price)


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"cat": ["x"]}, r"0.parquet has int64 in the column 'cat', and \S*1.parquet has string, and no type holds"),
        ({"cat": [True]}, r"int64 in the column 'cat', and \S*1.parquet has bool"),
        ({"cat": [[1]]}, r"int64 in the column 'cat', and \S*1.parquet has list<"),
        ({}, r"1.parquet has no column 'cat', and \S*0.parquet has; every file of impressions needs it"),
    ],
)
def test_parts_that_no_type_holds_are_named_before_spark_starts(root: Path, second: Any, sentence: str) -> None:
    write_parquet(root, impressions(1, cat=[5]), impressions(1, **second))
    with pytest.raises(InputError, match=sentence):
        find(root, settings_of(PARQUET), cat=CAT)
    find(root, settings_of(PARQUET), item=FieldSettings("item", "impression"))  # nobody needs cat


def test_a_column_without_a_name_is_passed_over_and_named_where_it_is_needed(spark: "SparkSession", root: Path) -> None:
    write_csv(root, f",{HEADER},cat,cat", "0,1,u,1,v,1,a,b", "1,2,u,2,v,2,a,b")
    assert column(read_impressions(spark, root, settings_of(CSV)), "status") == ["good", "good"]
    with pytest.raises(InputError, match="names the column 'cat', which is not there"):
        find(root, settings_of(CSV), cat=CAT)


@pytest.mark.parametrize(("named", "meant"), [("CAT", "cat"), ("user_city", "user.city"), (" cat", "cat")])
def test_a_name_that_is_not_there_is_likened_to_one_that_is(root: Path, named: str, meant: str) -> None:
    write_parquet(root, impressions(cat=["a", "b"], user=[{"id": "u", "city": "Oslo"}] * 2))
    with pytest.raises(InputError, match=f"names the column '{named}', which is not there .*; did you mean '{meant}'?"):
        find(root, settings_of(PARQUET | {"user": ["user.id"]}), cat=FieldSettings(named, "impression"))


def test_names_of_columns_come_from_header_where_no_file_has_them(spark: "SparkSession", root: Path) -> None:
    write_csv(root, "1,u,1,v,1,a", "2,u,2,v,2,b")
    with pytest.raises(InputError, match=r"source.events.impressions.header=\[NAME, …\]"):
        find(root, settings_of(CSV), cat=CAT)
    found = read_impressions(spark, root, settings_of(CSV | {"header": [*HEADER.split(","), "cat"]}), cat=CAT)
    assert column(found, "cat") == [raw_id("a"), raw_id("b")]


def test_a_delimiter_may_be_a_tab(spark: "SparkSession", root: Path) -> None:
    write_csv(root, f"{HEADER},cat".replace(",", "\t"), "1\tu\t1\tv\t1\ta, b")
    with pytest.raises(InputError, match=r"source.events.impressions.delimiter=tab"):
        find(root, settings_of(CSV), cat=CAT)
    assert column(read_impressions(spark, root, settings_of(CSV | {"delimiter": "\\t"}), cat=CAT), "cat") == [
        raw_id("a, b")
    ]


def test_bytes_that_are_no_utf_8_reject_their_row_wherever_they_stand(spark: "SparkSession", root: Path) -> None:
    lines = [f"{n},u,{n},v,1,k{n}".encode() for n in range(3000)]
    lines[2900] = b"2900,u,2900,v,1,\xff"
    (root / "imp.csv").write_bytes(b"\n".join([f"{HEADER},cat".encode(), *lines]))
    found = read_impressions(spark, root, settings_of(CSV), cat=CAT)
    assert [row["line"] for row in found.values() if row["status"] == "malformed_line"] == ["2900,u,2900,v,1,\ufffd"]
    assert len(found) == 3000


def test_another_encoding_is_decoded(spark: "SparkSession", root: Path) -> None:
    (root / "imp.csv").write_bytes(f"{HEADER},商品\n1,u,1,v,1,鞋\n".encode("gbk"))
    item = FieldSettings("商品", "impression")
    assert column(read_impressions(spark, root, settings_of(CSV | {"encoding": "gbk"}), cat=item), "cat") == [
        raw_id("鞋")
    ]


@pytest.mark.parametrize(
    ("form", "end", "pack"),
    [("jsonl", ".gz", gzip.compress), ("csv", ".bz2", bz2.compress), ("csv", ".zst", lambda raw: pa.compress(raw, "zstd", asbytes=True))],
)  # fmt: skip
def test_compressed_text_is_read_to_its_end_or_named(
    spark: "SparkSession", root: Path, form: str, end: str, pack: Any
) -> None:
    line = '{"id": 1, "user": "u", "item": 1, "view": "v", "at": 1}\n' if form == "jsonl" else f"{HEADER}\n1,u,1,v,1\n"
    (root / "imp").mkdir()
    whole = pack(line.encode())
    (root / "imp" / f"0.{form}{end}").write_bytes(whole)
    settings = settings_of({"path": "imp", "format": form})
    assert column(read_impressions(spark, root, settings), "status") == ["good"]
    (root / "imp" / f"0.{form}{end}").write_bytes(whole[: len(whole) - 9])
    with pytest.raises(InputError, match=f"0.{form}{end} cannot be read"):
        find(root, settings)


def test_folders_by_hives_rule_are_columns_and_a_pattern_takes_several_days(spark: "SparkSession", root: Path) -> None:
    for n, (day, name) in enumerate([("2024-05-02", "a%3Ab"), ("2024-05-03", "x"), ("2024-05-04", "__HIVE_DEFAULT_PARTITION__")]):  # fmt: skip
        folder = root / "imp" / f"dt={day}" / f"cat={name}"
        folder.mkdir(parents=True)
        (folder / "part-0.csv").write_text(f"{HEADER}\n{n},u,{n},v,1\n")
        (folder / "_SUCCESS").touch()
    day = FieldSettings("dt", "impression")
    found = read_impressions(spark, root, settings_of({"path": "imp", "format": "csv"}), cat=CAT, day=day)
    assert column(found, "cat") == [raw_id("a:b"), raw_id("x"), None]
    assert column(found, "day") == [raw_id(f"2024-05-0{n}") for n in (2, 3, 4)]
    link = root.parent / "days"
    link.symlink_to(root)
    some = settings_of({"path": "imp/dt=2024-05-0[34]", "format": "csv"})
    assert column(read_impressions(spark, link, some, day=day), "day") == [raw_id("2024-05-03"), raw_id("2024-05-04")]


def test_files_beside_hive_folders_and_patterns_that_fit_nothing_are_refused(root: Path) -> None:
    (root / "imp/dt=1").mkdir(parents=True)
    (root / "imp/dt=1/0.csv").write_text(f"{HEADER}\n1,u,1,v,1\n")
    (root / "imp/1.csv").write_text(f"{HEADER}\n1,u,1,v,1\n")
    with pytest.raises(InputError, match=r"lies in folders of the columns dt, and .*1.csv of none"):
        find(root, settings_of({"path": "imp", "format": "csv"}))
    with pytest.raises(InputError, match="fits nothing"):
        find(root, settings_of({"path": "imp/dt=2*", "format": "csv"}))
    for path in ("../raw/imp", str(root / "imp"), "."):
        with pytest.raises(InputError, match=r"is no path below source.path"):
            find(root, settings_of({"path": path, "format": "csv"}))


def test_partition_columns_of_parquet_and_json_lines(spark: "SparkSession", root: Path) -> None:
    for form in ("parquet", "jsonl"):
        (root / form / "dt=7").mkdir(parents=True)
    pq.write_table(impressions(1), root / "parquet/dt=7/0.parquet")
    (root / "jsonl/dt=7/0").write_text('{"id": 1, "user": "u", "item": 1, "view": "v", "at": 1}\n')
    for form in ("parquet", "jsonl"):
        link = root.parent / form
        link.symlink_to(root)
        found = read_impressions(
            spark, link, settings_of({"path": form, "format": form}), day=FieldSettings("dt", "context")
        )
        assert column(found, "day") == [7]
