"""source=events through the whole chain: the same dataset from every format, and each mistake in one sentence."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import pstdev
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from event_log import ACTIONS, IMPRESSIONS, Row, action, impression, written

from pipeline.audit.summary import audit_lines
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from pipeline.passes.job import Job
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]


def text_id(text: str) -> int:
    return xxhash.xxh64(text.encode(), seed=42).intdigest() & ((1 << 63) - 1)


def rows_of(out: Path, manifest: Manifest) -> dict[str, list[Row]]:
    """split → context rows with raw ids."""
    ids = {}
    for field in manifest.fields:
        if field.kind == "categorical":
            ids[field.name] = [None, -1, *pq.read_table(out / field.vocabulary)["raw_id"].to_pylist()]
    found: dict[str, list[Row]] = {}
    for file in manifest.files:
        for row in pq.read_table(out / file.path).to_pylist():
            for name, of_index in ids.items():
                value = row[name]
                row[name] = [of_index[i] for i in value] if isinstance(value, list) else of_index[value]
            found.setdefault(file.split, []).append(row)
    return found


@pytest.fixture(scope="module")
def from_parquet(
    spark: Any, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings
) -> tuple[Path, Manifest]:
    """The dataset of the log above, from Parquet."""
    root = tmp_path_factory.mktemp("parquet")
    overrides = written(root / "raw", "parquet")
    return root / "out", preprocess(preprocess_settings(root / "raw", root / "out", *overrides))


def test_labelled_impressions_become_context_rows_with_their_features_times_and_labels(
    from_parquet: tuple[Path, Manifest],
) -> None:
    out, manifest = from_parquet
    found = rows_of(out, manifest)
    first = next(row for row in found["train"] if row["context_id"] == f"{text_id('v1'):016x}")
    assert first == {
        "context_id": f"{text_id('v1'):016x}", "group_id": text_id("ada"),
        "user_id": text_id("ada"), "user_city": text_id("Oslo"),
        "user_categories": [7, 9], "user_categories__weight": [0.5, 2.0],
        "impression_id": [1, 2, 3], "timestamp": [3_600_000, 3_600_000, 5_400_000],
        "click": [1, 0, 1], "daction": [0, 0, 0], "conversion": [0, 0, 1],
        "item_id": [31, 42, 31], "item_category": [3, 4, 3],
        "item_tags": [text_id("t31"), text_id("new")] * 2, "item_tags__length": [2, 0, 2],
    }  # fmt: skip
    second = next(row for row in found["train"] if row["context_id"] == f"{text_id('v2'):016x}")
    assert (second["impression_id"], second["click"], second["daction"]) == ([4], [1], [1])
    assert second["user_city"] is None
    assert [row["impression_id"] for row in found["validation"]] == [[5]]
    assert [(row["impression_id"], row["item_id"]) for row in found["test"]] == [([6, 7], [-1, 31])]
    assert manifest.audit["quarantined"]["duplicate_impression"] == 1
    assert manifest.audit["events"]["impressions"]["outside_split"] == 1
    assert manifest.audit["events"]["actions"]["outcomes"]["wish"] == {"no_click": 1}
    assert manifest.audit["events"]["actions"]["other"] == 1
    assert "259200 s" in manifest.labels["conversion"]


@pytest.mark.parametrize(
    ("form", "split_bytes"), [("jsonl", 1 << 20), pytest.param("csv", 300, marks=pytest.mark.acceptance)]
)
def test_json_lines_and_csv_give_the_same_files_as_parquet_whatever_the_number_of_partitions(
    tmp_path: Path,
    preprocess_settings: Settings,
    from_parquet: tuple[Path, Manifest],
    form: str,
    split_bytes: int,
) -> None:
    overrides = [*written(tmp_path / "raw", form), f"source.split_bytes={split_bytes}"]
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    _, wanted = from_parquet
    assert wanted.files
    assert manifest.files == wanted.files
    assert manifest.fields == wanted.fields
    assert [source.name for source in manifest.sources] == ["impressions", "actions"]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_columns_that_differ_in_case_alone_are_two(
    tmp_path: Path, preprocess_settings: Settings, from_parquet: tuple[Path, Manifest], form: str
) -> None:
    overrides = written(tmp_path / "raw", form, [row | {"USER_ID": "x", "Tags": 5} for row in IMPRESSIONS])
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    assert manifest.files == from_parquet[1].files


@pytest.mark.usefixtures("spark")
def test_rows_with_defects_are_in_quarantine_whole_and_the_audit_is_reconciled(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    broken = [
        (impression(11, 1, "eve", 1, "v9") | {"timestamp": "soon"}, "malformed_line"),
        (impression(12, 1, "eve", 1, "v9") | {"user_id": None}, "malformed_line"),
        (impression(13, 1, "eve", 1, "v9") | {"page_view_id": None}, "bad_context_key"),
        (impression(14, 1, "eve", 1, "v9") | {"categories__weight": [0.5]}, "bad_feature"),
        (impression(15, 1, "eve", 1, "v9") | {"categories__weight": [0.5, math.inf]}, "bad_feature"),
        (impression(16, 1, "eve", 1, "v9") | {"tags": ["a", None]}, "bad_feature"),
    ]
    overrides = written(tmp_path / "raw", "jsonl", IMPRESSIONS + [row for row, _ in broken])
    with (tmp_path / "raw" / "impressions").open("a") as stream:
        stream.write('{"impression_id": 17, "timest\n')
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    (file,) = manifest.audit["quarantine"]
    found = pq.read_table(tmp_path / "out" / file["path"]).to_pylist()
    reasons = sorted(row["reason"] for row in found)
    assert reasons == sorted([reason for _, reason in broken] + ["malformed_line", "duplicate_impression"])
    assert b'{"impression_id": 17, "timest' in [row["line"] for row in found]
    assert {json.loads(row["line"])["impression_id"] for row in found if row["reason"] == "bad_feature"} == {
        "14",
        "15",
        "16",
    }
    read = sum(lines["impressions"]["read"] for lines in manifest.audit["lines"].values())
    aside = manifest.audit["events"]["impressions"]
    assert aside["read"] == len(IMPRESSIONS) + len(broken) + 1
    assert aside["read"] == read + aside["outside_split"] + sum(aside["immature"].values())


@pytest.mark.usefixtures("spark")
def test_lines_of_a_joined_table_that_cannot_be_read_are_counted_and_in_quarantine_or_stop_the_job(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    overrides = written(
        tmp_path / "raw", "parquet", [{k: v for k, v in row.items() if k != "city"} for row in IMPRESSIONS]
    )
    lines = ["ada,Oslo", "bob,New York, NY", "eve"]
    (tmp_path / "raw/users.csv").write_text("\n".join(["user_id,city", *lines]) + "\n")
    overrides.append("source.events.joins=[{path: users.csv, format: csv, by: [user_id]}]")
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    assert manifest.audit["quarantined"]["malformed_line"] == 2
    assert manifest.audit["events"]["impressions"]["read"] == len(IMPRESSIONS)
    found = [
        row
        for file in manifest.audit["quarantine"]
        for row in pq.read_table(tmp_path / "out" / file["path"]).to_pylist()
    ]
    assert {(row["source"], row["line"]) for row in found if row["reason"] == "malformed_line"} == {
        ("users.csv", line.encode()) for line in lines[1:]
    }
    cities = {row["group_id"]: row["user_city"] for row in rows_of(tmp_path / "out", manifest)["train"]}
    assert cities == {text_id("ada"): text_id("Oslo"), text_id("bob"): None}
    assert "2 of its lines cannot be read (malformed_line)" in "\n".join(audit_lines(str(tmp_path / "out")))
    with pytest.raises(
        InputError,
        match=r"users.csv has malformed_line \(.*\) in the row bob,New York, NY, and checks.malformed_line=fail",
    ):
        preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "no", *overrides, "checks.malformed_line=fail"))


BAD = {
    "malformed_line": {"timestamp": "soon"},
    "bad_label": {"clk": 2},
    "bad_context_key": {"page_view_id": None},
    "bad_feature": {"tags": ["a", None]},
    "duplicate_impression": {"impression_id": 1, "page_view_id": "v1", "user_id": "ada"},
}


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A log with a row of each reason, and its settings."""
    raw = tmp_path_factory.mktemp("bad") / "raw"
    good = [impression(1, 1, "ada", 31, "v1", clk=0), impression(2, 30, "bob", 31, "v2", clk=1)]
    overrides = written(
        raw, "jsonl", [*good, *(impression(9, 2, reason, 42, "v3", clk=0) | bad for reason, bad in BAD.items())]
    )
    overrides += [
        "source.events.actions_end=900000",
        "source.events.impressions.click=clk",
        "source.events.names.click=[]",
    ]
    return raw, overrides


@pytest.mark.usefixtures("spark")
def test_a_row_of_each_reason_is_quarantined(
    tmp_path: Path, preprocess_settings: Settings, one_of_each: tuple[Path, list[str]]
) -> None:
    raw, overrides = one_of_each
    found = preprocess(preprocess_settings(raw, tmp_path / "out", *overrides)).audit["quarantined"]
    assert {reason: number for reason, number in found.items() if number} == dict.fromkeys(BAD, 1)


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("reason", BAD)
def test_fail_stops_an_event_log_at_a_row_in_one_sentence_and_publishes_nothing(
    tmp_path: Path, preprocess_settings: Settings, reason: str, one_of_each: tuple[Path, list[str]]
) -> None:
    raw, overrides = one_of_each
    with pytest.raises(InputError) as stopped:
        preprocess(preprocess_settings(raw, tmp_path / "out", *overrides, f"checks.{reason}=fail"))
    message = str(stopped.value)
    place = "impressions" if reason == "duplicate_impression" else f"{raw}/impressions"
    assert message.startswith(f"{place} has {reason} (")
    assert f':"{BAD[reason].get("user_id", reason)}"' in message
    assert f"checks.{reason}=fail stops there; fix the row, or set checks.{reason}=quarantine." in message
    assert not [path for path in (tmp_path / "out").rglob("*.parquet") if "_staging" not in path.parts]


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize(("chosen", "expected"), [("[cart]", {4}), ("[wish]", {1}), ("[cart,wish]", {1, 4})])
def test_a_daction_of_an_event_log_is_a_chosen_action_after_the_click(
    tmp_path: Path, preprocess_settings: Settings, chosen: str, expected: set[int]
) -> None:
    actions = [*ACTIONS, action(1.3, "ada", 31, "wish"), action(2, "ada", 42, "cart")]
    overrides = [*written(tmp_path / "raw", "csv", actions=actions), f"labels.daction={chosen}"]
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    found = {
        id_
        for rows in rows_of(tmp_path / "out", manifest).values()
        for row in rows
        for id_, daction in zip(row["impression_id"], row["daction"], strict=True)
        if daction
    }
    assert found == expected
    assert set(manifest.audit["events"]["actions"]["outcomes"]) == {"click", "purchase", *chosen.strip("[]").split(",")}


@pytest.mark.usefixtures("spark")
def test_the_shape_of_alibabas_display_ads_clicks_in_the_impressions_and_actions_by_category_and_brand(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    day = 1494000000  # 2017-05-06 00:00 in Hangzhou
    shown = [(1, day + 60, 11, 1), (1, day + 60, 12, 0), (2, day + 90, 11, 0), (1, day + 400_000, 12, 1)]
    for name, header, rows in (
        ("raw_sample", "user,time_stamp,adgroup_id,pid,nonclk,clk", [(u, t, ad, "430548_1007", 1 - c, c) for u, t, ad, c in shown]),
        ("behavior_log", "user,time_stamp,btag,cate,brand", [
            (1, day + 100, "buy", 6, 7), (1, day + 120, "pv", 6, 8), (2, day + 95, "cart", 6, 7), (1, day + 50, "fav", 6, 7)]),
        ("ad_feature", "adgroup_id,cate_id,campaign_id,customer,brand,price", [(11, 6, 3, 4, 7, 9.5), (12, 6, 3, 4, 8, 1.0)]),
        ("user_profile", "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,new_user_class_level ",
         [(1, 0, 5, 2, 5, "", 3, 0, 4)]),
    ):  # fmt: skip
        lines = [header, *(",".join(map(str, row)) for row in rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path.with_name(f"{tmp_path.name}-dataset")  # not among the tables
    overrides = ["source=taobao_display", "features=taobao_display", "labels=cart_wish", "vocabulary.min_count=1"]
    settings = preprocess_settings(tmp_path, out, *overrides, f"source.events.actions_end={day + 700_000}")
    manifest = preprocess(settings)
    found = rows_of(out, manifest)
    first, second = sorted(found["train"], key=lambda row: row["group_id"])
    by_ad = dict(
        zip(first["ad_id"], zip(first["click"], first["daction"], first["conversion"], strict=True), strict=True)
    )
    assert by_ad == {11: (1, 0, 1), 12: (0, 0, 0)}
    assert (first["user_age"], first["user_spending"], first["item_brand"]) == (
        5,
        None,
        [7, 8] if first["ad_id"] == [11, 12] else [8, 7],
    )
    assert (second["user_age"], second["click"], second["daction"]) == (None, [0], [0])
    assert [row["click"] for row in found["test"]] == [[1]]
    assert manifest.audit["events"]["actions"]["outcomes"] == {
        "cart": {"no_click": 1}, "purchase": {"attributed": 1}, "wish": {"no_impression": 1},
    }  # fmt: skip


PRICES = [9.5, 1, None, -2, 7, 0.5, "none", 1e3, 5]
PRICE = ("+features.fields.price={raw_id: price, scope: impression, kind: numeric}",
         "+features.fields.stock={raw_id: stock, scope: context, kind: numeric}",
         "+features.fields.stock_level={raw_id: stock, scope: context}", "source.events.nulls=['',none]")  # fmt: skip


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_numeric_columns_keep_their_numbers_and_what_is_no_finite_number_is_a_bad_feature(
    tmp_path: Path, preprocess_settings: Settings, form: str
) -> None:
    priced = [row | {"price": price, "stock": 3} for row, price in zip(IMPRESSIONS, PRICES, strict=True)]
    bad = [math.nan, 1e300, -math.inf] + (["9,5", "0x10", " 1", "nan"] if form == "jsonl" else [])
    priced += [impression(20 + number, 1, "ada", 31, "v1", price=price, stock=3) for number, price in enumerate(bad)]
    if form == "parquet":
        priced = [row | {"price": None if row["price"] == "none" else row["price"]} for row in priced]
        priced = [row | {"price": row["price"] and float(row["price"])} for row in priced]
    overrides = written(tmp_path / "raw", form, priced)
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides, *PRICE))
    assert manifest.audit["quarantined"]["bad_feature"] == len(bad)
    found: dict[int, float | None] = {}
    for rows in rows_of(tmp_path / "out", manifest).values():
        for row in rows:
            found |= dict(zip(row["impression_id"], row["price"], strict=True))
            assert (row["stock"], row["stock_level"]) == (3.0, 3)
    assert found == {1: 9.5, 2: 1.0, 3: None, 4: -2.0, 5: 7.0, 6: 0.5, 7: None}
    price, stock, _ = manifest.fields[-3:]
    assert price.mean == pytest.approx((9.5 + 1 - 2) / 3)
    assert price.std == pytest.approx(pstdev([9.5, 1, -2]))
    assert (stock.mean, stock.std, stock.num_rows) == (3.0, 0.0, 0)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("source.events.boundaries=[0,5,4,9]", "boundaries.*do not increase; give t0 < t1"),
        ("source.events.boundaries=[0,5,9]", "are 3 times, not the four t0,t1,t2,t3"),
        ("source.events.boundaries=[0,soon,9,10]", "'soon', which is no time; write it as 2017-05-06"),
        ("source.events.boundaries=[0,1,2,'1_0']", "'1_0', which is no time; write it as 2017-05-06"),
        ("source.events.boundaries=[0,1,2,99999999999999999999]", "99999999999999999999 does not fit 64 bits"),
        ("source.events.actions_end=-99999999999", "actions_end has '-99999999999', which is no time"),
        (
            "source.events.impressions.user=[uid]",
            "impressions names the column 'uid', which is not there.*user_id, item_id",
        ),
        (
            "source.events.actions.action=kind",
            "actions names the column 'kind', which is not there.*timestamp, user_id",
        ),
        (
            "+features.fields.price={raw_id: price, scope: impression}",
            "features.fields.price.raw_id names the column 'price'",
        ),
        (
            "+features.fields.views={raw_id: categories, scope: context, kind: numeric}",
            "list<.*'categories', which is read as numbers",
        ),
        ("source.events.actions.path=acts", "path=acts is not in source.path=.*there is: actions, impressions"),
        ("source.events.impressions.format=csv", "impressions/0.parquet cannot be read as csv"),
        ("source.events.names.cart=[]", "names has no cart .*source.events.names.cart="),
        ("source.events.names.wish=[cart]", "gives 'cart' to both cart and wish"),
        ("labels.daction=[hug]", "names has no hug"),
        ("labels.daction=[purchase]", "daction names purchase, which is a label of its own"),
        ("source.events.windows_s.cart=-1", "windows_s.cart=-1 is negative"),
        (
            "+features.fields.click={raw_id: city, scope: context}",
            "fields.click has the name of a column .* call the field",
        ),
        ("source.events.clock_skew_s=-2", "clock_skew_s=-2 is below 0"),
        ("source.events.time_unit=h", "time_unit=h is not one of s, ms, us, ns, iso, nor a pattern"),
        ("source.events.impressions.click=clk", "both say what a click is"),
        ("source.events.impressions.item=[tags]", "'tags', where one value is needed"),
        ("features.fields.item_id.arity=many", "'item_id', where many values are needed"),
    ],
)
def test_a_mistake_stops_before_spark_starts_in_one_sentence(
    tmp_path: Path, preprocess_settings: Settings, override: str, sentence: str
) -> None:
    overrides = written(tmp_path / "raw", "parquet")
    with pytest.raises(InputError, match=sentence):
        Job.of(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides, override))


def test_a_column_of_the_log_with_a_name_of_ours_is_refused(tmp_path: Path, preprocess_settings: Settings) -> None:
    overrides = written(tmp_path / "raw", "csv", [row | {"_file": 1} for row in IMPRESSIONS])
    with pytest.raises(InputError, match=r"impressions has a column '_file', .*; rename it"):
        Job.of(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))


@pytest.mark.usefixtures("spark")
def test_a_damaged_file_is_named(tmp_path: Path, preprocess_settings: Settings) -> None:
    overrides = written(tmp_path / "raw", "parquet")
    path = tmp_path / "raw" / "actions" / "1 2.parquet"
    (tmp_path / "raw" / "actions" / "1.parquet").rename(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError) as stopped:
        preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    assert str(stopped.value).startswith(f"{path} cannot be read as parquet (")
    assert str(stopped.value).endswith("repair the file, or set source.events.actions.format to what it is.")


@pytest.mark.usefixtures("spark")
def test_a_log_outside_its_boundaries_says_where_it_lies(tmp_path: Path, preprocess_settings: Settings) -> None:
    overrides = [*written(tmp_path / "raw", "parquet"), "source.events.time_unit=ms"]
    with pytest.raises(
        InputError, match=r"No impression is left: .* They lie from 1970-01-01T00:00:03Z to 1970-01-01T00:03:00Z"
    ):
        preprocess(
            preprocess_settings(
                tmp_path / "raw", tmp_path / "out", *overrides, "source.events.boundaries=[500,600,700,800]"
            )
        )
