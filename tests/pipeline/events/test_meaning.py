"""What events mean: users, items, names, filters and joins. Each case is a small log of a public report or an everyday habit."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyspark.sql import functions as F
from small_shops import event_settings, label_shop, warnings_of

from pipeline.audit.event_outcomes import event_lines
from pipeline.errors import InputError
from pipeline.events.causes import cause_of, first_cause, without_spelling
from pipeline.events.doubts import without_spelling_column
from pipeline.events.read import cleaned
from pipeline.passes.publish import with_details

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IMPRESSIONS = """
    id,user,item,page,at
    1,anna,100,7,1100
    2,anna,101,7,1100
    3,bob,100,8,2100
    """
ACTIONS = """
    user,item,action,at
    anna,100,click,1150
    anna,100,cart,1160
    anna,100,purchase,1170
    bob,100,click,2150
    """


def test_users_that_share_a_page_view_have_contexts_of_their_own(spark: "SparkSession", tmp_path: Path) -> None:
    impressions = """
        id,user,item,page,at
        1,anna,100,7,1100
        1,bob,200,7,1160
        2,guest,300,0,1200
        2,anna,300,0,1300
        3,anna,100,9,1400
        """
    actions = "user,item,action,at\nbob,200,click,1170\nanna,300,click,1250\nanna,300,click,1310\n"
    found, rows = label_shop(spark, tmp_path, {"impressions": impressions, "actions": actions}, event_settings())
    contexts: dict[int, set[str]] = {}
    for row in rows:
        contexts.setdefault(row["context_key"], set()).add(row["user"])
    assert len(contexts) == 5
    assert all(len(users) == 1 for users in contexts.values())
    assert rows[-1]["context_key"] == 9  # of one user: the page view's own id, as it was
    assert [row["status"] for row in rows] == ["good"] * 5  # an id that is unique within a user only is no duplicate
    assert [(row["user"], row["click_at"]) for row in rows if row["click_at"]] == [("bob", 1170000), ("anna", 1310000)]
    impressions = found.details["impressions"]
    assert (impressions["shared_contexts"], impressions["of_shared_contexts"]) == (2, 4)
    message = warnings_of(found)["shared_context"]
    assert message.startswith("2 values of page are shared by several users (4 impressions); '")
    assert "'anna' and 'guest'" in message or "'anna' and 'bob'" in message
    assert found.audit["actions"]["outcomes"]["click"] == {"attributed": 2, "no_impression": 1}  # the login


def test_keys_that_are_written_in_two_ways_are_named_and_made_equal_when_that_is_said(
    spark: "SparkSession", tmp_path: Path
) -> None:
    tables = {"impressions": IMPRESSIONS.replace(",100,", ",100.0,"), "actions": ACTIONS}
    with pytest.raises(InputError) as stopped:
        label_shop(spark, tmp_path, tables, event_settings(), label_without_positive="fail")
    assert str(stopped.value) == (
        "No impression of the dataset has the label click: 2 of 2 click actions have the outcome no_impression; actions have "
        "the item '100' and impressions '100.0', which differ in .0; set source.events.actions.clean={item: [integer]} and "
        "source.events.impressions.clean={item: [integer]}. checks.label_without_positive=fail stops there; correct it, or "
        "set checks.label_without_positive=warn."
    )
    clean = {"clean": {"item": ["integer"], "user": ["trim", "lower"]}}
    tables = {"impressions": tables["impressions"].replace("anna", '" Anna"'), "actions": ACTIONS}
    found, rows = label_shop(
        spark, _folder(tmp_path, "clean"), tables, event_settings(impressions=clean, actions=clean)
    )
    assert "label_without_positive" not in warnings_of(found)
    assert [(row["click_at"], row["conversion_at"]) for row in rows] == [
        (1150000, 1170000), (None, None), (2150000, None),
    ]  # fmt: skip


def test_texts_without_what_the_causes_are_about_are_those_of_python(spark: "SparkSession") -> None:
    texts = [
        " a ",
        "A",
        "0100",
        "100.0",
        "100.",
        "-007.00",
        "+7",
        "0",
        "00",
        "0.0",
        "a0",
        "1e3",
        "",
        " ",
        "İ",
        "ß",
        "x.0",
        "\t7 ",
    ]
    frame = spark.createDataFrame([(text,) for text in texts], "text string")
    cleaning = {"text": ["trim", "integer"]}
    rows = frame.select("text", without_spelling_column(F.col("text")).alias("plain")).collect()
    assert [(text, without_spelling(text)) for text in texts if text != "İ"] == [
        tuple(row) for row in rows if row[0] != "İ"
    ]
    numbers = cleaned(frame, cleaning).collect()
    assert [row[0] for row in numbers] == [
        "a", "A", "100", "100", "100", "-7", "7", "0", "0", "0", "a0", "1e3", "", "", "İ", "ß", "x.0", "7"
    ]  # fmt: skip
    floats = spark.createDataFrame([(1e9,), (100.0,), (0.5,), (-3.0,), (None,)], "text double")
    assert [row[0] for row in cleaned(floats, cleaning).collect()] == ["1000000000", "100", "0.500000", "-3", None]


@pytest.mark.parametrize(
    ("one", "other", "cause", "cleanings"),
    [
        ("100", "100.0", ".0", ["integer"]),
        ("0100", "100", "leading zeros", ["integer"]),
        ("Anna", "anna", "case", ["lower"]),
        ("anna ", "anna", "blanks", ["trim"]),
        ("0100", " 100.0", "blanks and .0 and leading zeros", ["trim", "integer"]),
        ("A ", " a", "blanks and case", ["trim", "lower"]),
    ],
)
def test_the_cause_of_a_difference_is_named_with_what_undoes_it(
    one: str, other: str, cause: str, cleanings: list[str]
) -> None:
    assert cause_of(one, other) == (cause, cleanings)
    assert first_cause(["x", one], [other, "y", one + "?"]) == (one, other, cause, cleanings)
    assert cause_of(one, one) is None
    assert cause_of(one, f"{other}2") is None


def test_names_of_actions_that_differ_in_case_are_named_with_their_number(
    spark: "SparkSession", tmp_path: Path
) -> None:
    actions = ACTIONS.replace("click", "Click").replace("purchase", "Purchase").replace("cart", "view")
    found, _ = label_shop(spark, tmp_path, {"impressions": IMPRESSIONS, "actions": actions}, event_settings())
    messages = [doubt["message"] for doubt in found.details["warnings"] if doubt["check"] == "label_without_positive"]
    assert len(messages) == 3
    assert "no action of the log is called 'click', but 2 are called 'Click', which differs in case; set" in messages[0]
    assert "source.events.actions.clean={action: [lower]}" in messages[0]
    assert "source.events.names.click" in messages[0]
    assert "no action of the log is called 'cart'; those that make no label are called " in messages[1]
    assert found.details["actions"]["other_names"] == {"Click": 2, "Purchase": 1, "view": 1}
    lines = event_lines(with_details(found.audit, found.details))
    assert lines[0] == ("impressions: 3 read, 3 written, 0 quarantined, 0 immature, 0 outside the splits")
    assert "4 with a name that makes no label (2 'Click', 1 'Purchase', 1 'view')" in lines[1]


def test_an_item_that_is_partly_unknown_stays_and_is_counted(spark: "SparkSession", tmp_path: Path) -> None:
    impressions = """
        id,user,ad,page,at,clk
        1,anna,10,7,1100,1
        2,anna,11,7,1101,1
        3,anna,12,7,1102,0
        4,anna,10,7,1100,0
        """
    ads = "ad,cate,brand\n10,5,NULL\n11,6,7\n"
    settings = event_settings(
        impressions={"item": ["cate", "brand"], "click": "clk", "id": [], "context": []},
        actions={"item": ["cate", "brand"]},
        joins=[{"path": "ads.csv", "by": ["ad"]}],
        names={"cart": ["cart"], "purchase": ["buy"]},
        nulls=["", "NULL"],
    )
    actions = "user,cate,brand,action,at\nanna,6,7,buy,1120\nanna,5,NULL,buy,1120\n"
    tables = {"impressions": impressions, "actions": actions, "ads": ads}
    found, rows = label_shop(spark, tmp_path, tables, settings, fields=("ad", "brand", "cate"))
    rows = sorted(rows, key=lambda row: (row["f0"], row["clicked"]))
    assert [(row["status"], row["f0"], row["f1"], row["f2"]) for row in rows] == [
        ("good", 10, None, 5), ("good", 10, None, 5), ("good", 11, 7, 6), ("good", 12, None, None),
    ]  # fmt: skip
    assert [(bool(row["click_at"]), bool(row["conversion_at"])) for row in rows] == [
        (False, False), (True, False), (True, True), (False, False),
    ]  # fmt: skip
    assert found.details["impressions"]["without_item"] == 3
    assert [(join["path"], join["matched"]) for join in found.details["joins"]] == [("ads.csv", 3)]
    line = event_lines(with_details(found.audit, found.details))[0]
    assert "4 written (3 without an item, which no action can be matched with)" in line
    found, rows = label_shop(
        spark, _folder(tmp_path, "quarantine"), tables, settings, fields=("ad",), missing_item="quarantine"
    )
    assert found.details["impressions"]["quarantined"] == {"missing_item": 3}


def test_one_table_with_all_events_is_divided_by_filters(spark: "SparkSession", tmp_path: Path) -> None:
    events = """
        id,user,item,page,at,event,channel
        1,anna,100,7,1100,pv,web
        2,anna,101,7,1100,PV,web
        ,anna,100,,1150,click,web
        ,anna,100,,1160,purchase,web
        9,anna,100,7,1170,pv,app
        ,,,,,heartbeat,web
        broken
        """
    settings = event_settings(
        impressions={"path": "all.csv", "clean": {"event": ["lower"]}, "where": {"event": ["pv"], "channel": ["web"]}},
        actions={"path": "all.csv", "action": "event", "where": {"event": ["click", "purchase"]}},
    )
    found, rows = label_shop(spark, tmp_path, {"all": events}, settings)
    assert [file.name for file in found.log.files] == ["all.csv"]
    good = [row for row in rows if row["status"] == "good"]
    assert [(row["impression_id"], bool(row["click_at"]), bool(row["conversion_at"])) for row in good] == [
        (1, True, True), (2, False, False),
    ]  # fmt: skip
    assert found.audit["impressions"]["read"] == 3  # the row that cannot be parsed may be one
    assert found.details["impressions"]["quarantined"] == {"malformed_line": 1}
    actions = found.audit["actions"]
    assert actions["read"] - actions["malformed"] == 2


def test_identical_rows_of_a_joined_table_are_one_and_others_are_named(spark: "SparkSession", tmp_path: Path) -> None:
    tables = {
        "impressions": IMPRESSIONS,
        "actions": ACTIONS,
        "items": "item,cat,x\n100,5,1\n101,6,1\n100,5,2\n,7,1\n,8,1\n",
    }
    settings = event_settings(joins=[{"path": "items.csv", "by": ["item"]}])
    _, rows = label_shop(spark, tmp_path, tables, settings, fields=("item", "cat"))
    assert [row["f1"] for row in rows] == [5, 6, 5]  # the column x is not read, so rows that differ in it alone are one
    with pytest.raises(InputError) as stopped:
        label_shop(spark, _folder(tmp_path, "x"), tables, settings, fields=("item", "cat", "x"))
    assert "joins[0].path=items.csv has the key 100 in 2 rows that differ (x: '" in str(stopped.value)
    assert "If it is a history, name the column of its times as asof." in str(stopped.value)


def test_a_history_is_joined_as_of_the_impression(spark: "SparkSession", tmp_path: Path) -> None:
    items = """
        sku,since,cat
        100,2000,6
        100,1970-01-01 00:18:20,5
        100,1970-01-01 00:34:59,7
        101,1970-01-01 00:18:21,8
        100,1970-01-01 00:18:20,5
        ,1970-01-01 00:00:00,9
        102,,9
        """
    history = {"path": "items.csv", "by": ["item"], "key": ["sku"], "asof": "since", "time_unit": "iso"}
    impressions = IMPRESSIONS + "4,bob,,9,1200\n    5,bob,102,9,1200\n"
    tables = {"impressions": impressions, "actions": ACTIONS, "items": items}
    found, rows = label_shop(spark, tmp_path, tables, event_settings(joins=[history]), fields=("item", "cat"))
    by_id = {row["impression_id"]: row["f1"] for row in rows if row["user"]}
    assert by_id == {1: 5, 2: None, 3: 7, 5: None}  # the row of item 101 holds from a second later on
    assert [(join["path"], join["matched"]) for join in found.details["joins"]] == [("items.csv", 2)]
    clash = {"items": items + "100,1970-01-01 00:18:20,6\n"}
    with pytest.raises(
        InputError, match=r"has the key 100 in 2 rows that differ \(cat: '[56]', '[56]'\) and have one time in since"
    ):
        label_shop(spark, _folder(tmp_path, "clash"), tables | clash, event_settings(joins=[history]), fields=("cat",))


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_join_without_a_match_says_why(spark: "SparkSession", tmp_path: Path) -> None:
    tables = {"impressions": IMPRESSIONS, "actions": ACTIONS, "items": "item,cat\n0100,5\n0101,6\n"}
    settings = event_settings(joins=[{"path": "items.csv", "by": ["item"]}])
    found, _ = label_shop(spark, tmp_path, tables, settings, fields=("cat",))
    assert (
        "impressions have the key '100' and the table '0100', which differ in leading zeros; set "
        "source.events.impressions.clean={item: [integer]} and source.events.joins[0].clean={item: [integer]}"
    ) in warnings_of(found)["join_without_match"]
    tables["items"] = "item,cat\nx,5\n"
    found, _ = label_shop(spark, _folder(tmp_path, "x"), tables, settings, fields=("cat",))
    assert "keys such as '100' and the table has 'x'" in warnings_of(found)["join_without_match"]
    assert event_lines(with_details(found.audit, found.details))[-1] == (
        "joins[0] items.csv: 0 impressions match (0.0%)"
    )


@pytest.mark.slow
@pytest.mark.acceptance
def test_an_end_of_the_actions_that_one_clock_has_set_is_named(spark: "SparkSession", tmp_path: Path) -> None:
    actions = ACTIONS + "eve,1,view,99999999\n"
    settings = event_settings(actions_end=None)
    found, _ = label_shop(spark, tmp_path, {"impressions": IMPRESSIONS, "actions": actions}, settings)
    message = warnings_of(found)["actions_end"]
    assert message.startswith("The actions end at 1973-03-03T09:46:39Z, 1157 days after the last impression")
    assert "1 of 5 actions lie more than a day after it" in message


def test_an_empty_split_says_what_lies_in_it_and_an_empty_train_split_stops(
    spark: "SparkSession", tmp_path: Path
) -> None:
    tables = {"impressions": IMPRESSIONS, "actions": ACTIONS}
    found, _ = label_shop(spark, tmp_path, tables, event_settings(actions_end="2500"))
    message = warnings_of(found)["empty_split"]
    assert (
        "The test split has no impression: of those from 1970-01-01T00:33:20Z to 1970-01-01T00:50:00Z, 1 are immature"
        in message
    )
    assert event_lines(with_details(found.audit, found.details))[0] == (
        "impressions: 3 read, 2 written, 0 quarantined, 1 immature (1 test), 0 outside the splits"
    )
    settings = event_settings(boundaries=["500", "1000", "2000", "3000"])
    with pytest.raises(
        InputError, match="The train split has no impression, so there is nothing to learn from: none lies from"
    ):
        label_shop(spark, _folder(tmp_path, "train"), tables, settings)


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("settings", "change", "sentence"),
    [
        ({"impressions": {"click": "clk"}, "names": {"cart": ["cart"], "purchase": ["buy"]}}, ("0\n", "yes\n"),
         "3 bad_label. The most frequent reason is bad_label .*: the column clk has 'yes', for example, as one of 3 rows"),
        ({"time_unit": "iso"}, ("0\n", "0\n"),
         "3 malformed_line. .*: the column at has '1100', for example, as one of 3 rows; check time_unit=iso, and"),
        ({"nulls": ["anna", "bob"]}, ("0\n", "0\n"), ".*the column user has 'anna', for example, as one of 3 rows"),
    ],
)  # fmt: skip
def test_no_impression_left_names_the_reason_its_column_and_a_value(
    spark: "SparkSession", tmp_path: Path, settings: dict[str, dict[str, str]], change: tuple[str, str], sentence: str
) -> None:
    impressions = IMPRESSIONS.replace("at\n", "at,clk\n").replace("00\n", "00,0\n").replace(*change)
    with pytest.raises(InputError, match=f"No impression is left: {sentence}"):
        label_shop(spark, tmp_path, {"impressions": impressions, "actions": ACTIONS}, event_settings(**settings))


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name
