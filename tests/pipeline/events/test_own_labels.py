"""Labels that are columns of the impression's row, with their times and without."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_shops import event_settings, label_shop, warnings_of

from pipeline.audit.event_outcomes import event_lines
from pipeline.errors import InputError
from pipeline.passes.publish import with_details

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: id → (flags and times, status, click, daction, conversion); windows are 100 s and 1000 s after the click.
ROWS = {
    1: ("1,1150,1,1160,True,1170", "good", 1150, 1160, 1170),
    2: ("0,,0,,False,", "good", None, None, None),
    3: ("1,1200,0,,1.0,2200", "good", 1200, None, 2200),  # both on the last second of their windows
    4: ("1,1200,0,,1,2201", "good", 1200, None, None),
    5: ("1,1201,1,1210,1,1210", "good", None, None, None),  # too late, and so nothing follows it
    6: ("0,,1,1150,1,1150", "good", None, None, None),  # bought without a click
    7: ("yes,1150,0,,0,", "bad_label", None, None, None),
    8: ("1,,0,,0,", "bad_label", None, None, None),  # clicked, nobody knows when
    9: ("1,1099,0,,0,", "bad_label", None, None, None),  # before it was shown
    10: ("1,1150,0,,1,1149", "bad_label", None, None, None),  # bought before the click
    11: ("0,soon,0,,0,-1", "good", None, None, None),  # times of what did not follow are not read
}
HEADER = "id,user,item,page,at,clk,clk_at,cart,cart_at,buy,buy_at\n"
FLAGS = {"click": "clk", "conversion": "buy", "dactions": {"cart": "cart"}}
TIMED = {"click_time": "clk_at", "conversion_time": "buy_at", "daction_times": {"cart": "cart_at"}}


def test_labels_with_times_count_within_their_windows(spark: "SparkSession", tmp_path: Path) -> None:
    table = HEADER + "".join(f"{key},anna,{key},1,1100,{row[0]}\n" for key, row in ROWS.items())
    settings = event_settings(
        impressions=FLAGS | TIMED, names={}, actions_end=None, boundaries=["1000", "1101", "1101", "1102"]
    )
    found, rows = label_shop(spark, tmp_path, {"impressions": table}, settings)
    assert found.audit["actions_end_ms"] == 2_200_000  # the last label that counts: all impressions are mature
    times = ("click_at", "daction_at", "conversion_at")
    assert {
        row["impression_id"]: (row["status"], *(row[name] and row[name] // 1000 for name in times)) for row in rows
    } == {key: row[1:] for key, row in ROWS.items()}
    assert found.details["labels_in_columns"] == {
        "click": {"outside_window": 1}, "conversion": {"no_click": 2, "outside_window": 1}, "daction": {"no_click": 2},
    }  # fmt: skip
    assert found.details["impressions"]["quarantined"] == {"bad_label": 4}
    lines = event_lines(with_details(found.audit, found.details))
    assert "4 quarantined (4 bad_label: clk" in lines[0]
    assert "  conversion, a column of the impressions: 2 no click, 1 outside window" in lines
    assert not any(line.startswith("actions:") for line in lines)
    assert "empty_split" in warnings_of(found)


def test_labels_without_times_are_final_and_actions_may_follow_a_click_in_a_column(
    spark: "SparkSession", tmp_path: Path
) -> None:
    impressions = (
        "id,user,item,page,at,clk,clk_at,buy\n1,anna,5,1,1100,1,1150,1\n2,anna,5,1,1120,0,,0\n3,bob,5,2,2999,1,,0\n"
    )
    flags = {"click": "clk", "conversion": "buy"}
    settings = event_settings(impressions=flags, names={"cart": ["cart"]}, actions_end="4000", windows_s={"cart": 1000})
    actions = "user,item,action,at\nanna,5,cart,2100\nanna,5,cart,2101\nbob,5,cart,2999\n"
    found, rows = label_shop(spark, tmp_path, {"impressions": impressions, "actions": actions}, settings)
    times = ("click_at", "daction_at", "conversion_at")
    assert [tuple(row[name] and row[name] // 1000 for name in times) for row in rows] == [
        (1100, 2100, 1100), (None, None, None), (2999, 2999, None),
    ]  # fmt: skip
    assert found.audit["actions"]["outcomes"] == {"cart": {"attributed": 2, "outside_window": 1}}
    # With the time of the click, the cart's window begins there, though the item was shown again in between.
    (tmp_path / "timed").mkdir()
    settings = event_settings(
        impressions=flags | {"click_time": "clk_at"}, names={"cart": ["cart"]}, actions_end="9000",
        windows_s={"click": 60, "cart": 1000},
    )  # fmt: skip
    impressions = impressions.replace("2999,1,,0", "2999,1,3059,0")
    found, rows = label_shop(spark, tmp_path / "timed", {"impressions": impressions, "actions": actions}, settings)
    assert [tuple(row[name] and row[name] // 1000 for name in times) for row in rows] == [
        (1150, 2100, 1150), (None, None, None), (3059, None, None),
    ]  # fmt: skip
    assert found.audit["actions"]["outcomes"] == {"cart": {"attributed": 2, "no_click": 1}}


@pytest.mark.parametrize(
    ("impressions", "names", "sentence"),
    [
        ({"conversion": "buy"}, {"click": ["click"]}, "has a column for purchase and none for the click before it"),
        ({"click": "clk", "conversion": "buy"}, {"purchase": ["buy"]}, "impressions.conversion=buy and source.events.names.purchase"),
        ({"click": "clk", "daction_times": {"cart": "x"}}, {"cart": ["c"]}, "impressions.dactions.cart=x and source.events.names.cart"),
    ],
)  # fmt: skip
def test_two_meanings_of_one_label_are_refused(
    impressions: dict[str, str], names: dict[str, list[str]], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        event_settings(impressions=impressions, names=names)
