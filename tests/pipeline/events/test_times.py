"""Times of a log: the same whatever the machine's zone and date; what has no full date, or an ambiguous zone, is none."""

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from pyspark.sql import functions as F

from pipeline.config.time_units import check_time_unit, check_time_zone
from pipeline.errors import InputError
from pipeline.events.times import milliseconds, settle

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PARIS = "Europe/Paris"


def ms(text: str, zone: str = "UTC") -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


MORNING = "2024-05-02T10:01:00"
#: (unit, zone, text, its milliseconds or None)
CASES: list[tuple[str, str, str, int | None]] = [
    ("iso", "UTC", "2024-05-02 10:01:00", ms(MORNING)),
    ("iso", PARIS, "2024-05-02 10:01:00", ms(MORNING, PARIS)),
    ("iso", PARIS, "2024-05-02", ms("2024-05-02", PARIS)),
    ("iso", PARIS, "2024-5-2T10:01", ms(MORNING, PARIS)),
    ("iso", PARIS, " 2024-05-02T10:01:00.1239 ", ms("2024-05-02T10:01:00.123", PARIS)),
    ("iso", PARIS, "2024-05-02T10:01:00Z", ms(MORNING)),
    ("iso", PARIS, "2024-05-02 10:01:00 UTC", ms(MORNING)),
    ("iso", PARIS, "2024-05-02 10:01:00+08:00", ms(f"{MORNING}+08:00")),
    ("iso", PARIS, "2024-05-02 10:01:00 +0800", ms(f"{MORNING}+08:00")),
    ("iso", PARIS, "2024-05-02 10:01:00 GMT+8", ms(f"{MORNING}+08:00")),
    ("iso", PARIS, "2024-05-02 10:01:00 Asia/Shanghai", ms(f"{MORNING}+08:00")),
    ("iso", PARIS, "2024-03-31 02:30:00", ms("2024-03-31T01:30:00+00:00")),  # an hour that Paris' clocks leave out
    ("iso", PARIS, "2024-10-27 02:30:00", ms("2024-10-27T02:30:00+02:00")),  # and one that they show twice
    *[("iso", "UTC", text, None) for text in (
        "10:01:40", "T10:01:40", "10:01", "2024", "2024-05", "2024-05-02 10:01:00 CST", "2024-05-02 10:01:00 PST8PDT",
        "2024-05-02 10:01:00 EST", "now", "today", "2024-13-02", "2024-02-30", "2024-05-02 25:00:00", "1714644000", "",
        "2024-05-02 10", "02.05.2024", "1969-12-31 23:59:59", "10000-01-01")],
    ("yyyyMMdd HH:mm:ss", "UTC", "20240502 10:01:00", ms(MORNING)),
    ("yyyyMMdd HH:mm:ss", "Asia/Shanghai", "20240502 10:01:00", ms(f"{MORNING}+08:00")),
    ("yyyyMMdd HH:mm:ss", "UTC", "20240502", None),
    ("yyyyMMdd HH:mm:ss", "UTC", "10:01:00", None),
    ("yyyyMMdd", "-03:00", "20240502 10:01:00", None),
    ("yyyy-MM-dd", "-03:00", "2024-5-2", None),
    ("yyyyMMdd", "-03:00", "20240502", ms("2024-05-02T03:00:00")),
    ("dd/MMM/yyyy:HH:mm:ss Z", PARIS, "02/May/2024:10:01:00 +0800", ms(f"{MORNING}+08:00")),
    ("dd.MM.yyyy h:mm a", "UTC", "02.05.2024 10:01 AM", ms(MORNING)),
    ("yyyy-MM-dd'T'HH:mm:ss,SSS", "UTC", "2024-05-02T10:01:00,250", ms(MORNING) + 250),
    ("yyyy-MM-dd HH:mm VV", "UTC", "2024-05-02 10:01 Asia/Shanghai", ms(f"{MORNING}+08:00")),
    ("yyyyDDD", "UTC", "2024123", ms("2024-05-02")),
    ("s", PARIS, "1714644060.9999", ms(MORNING) + 999),
    ("ms", PARIS, "1714644060250", ms(MORNING) + 250),
    ("us", PARIS, "1714644060250999", ms(MORNING) + 250),
    ("ns", PARIS, "1714644060250999999", ms(MORNING) + 250),
    ("ns", PARIS, "-1", None),
]  # fmt: skip


def test_texts_and_numbers_are_the_times_of_python(spark: "SparkSession") -> None:
    settle(spark)
    frame = spark.createDataFrame([(number, case[2]) for number, case in enumerate(CASES)], "number int, text string")
    kind = frame.schema["text"].dataType
    found = F.lit(None).cast("long")
    for unit, zone in {case[:2] for case in CASES}:
        mine = [number for number, case in enumerate(CASES) if case[:2] == (unit, zone)]
        found = F.when(F.col("number").isin(mine), milliseconds(F.col("text"), kind, unit, zone)).otherwise(found)
    got = dict(frame.select("number", found.alias("at")).collect())
    assert [(*case[:3], got[number]) for number, case in enumerate(CASES)] == CASES


def test_times_by_type_are_absolute_where_they_say_so_and_else_of_the_zone(spark: "SparkSession") -> None:
    settle(spark)
    moment = datetime(2024, 5, 2, 10, 1, 0, 250_999)
    row: tuple[Any, ...] = (moment.replace(tzinfo=UTC), moment, date(2024, 5, 2))
    frame = spark.createDataFrame([row], "absolute timestamp, local timestamp_ntz, day date")
    for zone in ("UTC", PARIS, "-03:00"):
        columns = [
            milliseconds(F.col(entry.name), entry.dataType, "s", zone).alias(entry.name) for entry in frame.schema
        ]
        offset = "+00:00" if zone == "UTC" else "+02:00" if zone == PARIS else "-03:00"
        wanted = (ms(MORNING) + 250, ms(f"{MORNING}{offset}") + 250, ms(f"2024-05-02T00:00:00{offset}"))
        assert tuple(frame.select(*columns).collect()[0]) == wanted


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ("uuuu-MM-dd", "'uuuu' are none that it may have; the year is yyyy"),
        ("HH:mm:ss", "needs its year, month and day"),
        ("yyyy-MM", "needs its year, month and day"),
        ("%Y-%m-%d", "%Y-%m-%d is yyyy-MM-dd"),
        ("YYYY-MM-dd", "'YYYY' are none that it may have; the year is yyyy"),
        ("yyyy-MM-DD", "'DD' are none that it may have; the day of the month is dd"),
        ("yyyy-MM-dd HH:mm:ss z", "'z' are none that it may have; an offset is XXX"),
        ("yyyy-MM-dd hh:mm", "needs a"),
        ("yyyy-MM-dd'T", "has no end"),
        ("minutes", "is not one of s, ms, us, ns, iso"),
    ],
)
def test_a_pattern_without_a_date_or_with_an_ambiguous_zone_is_refused(unit: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_time_unit("time_unit", unit)


@pytest.mark.parametrize(
    "zone", ["CST", "EST", "GMT+8", "Mars/Base", "+25:00", "8", "", "asia/shanghai", "../etc/passwd"]
)
def test_an_abbreviation_is_no_zone(zone: str) -> None:
    with pytest.raises(InputError, match="is no time zone; write a region or an offset"):
        check_time_zone("time_zone", zone)
    for good in ("UTC", "Asia/Shanghai", "America/Argentina/Buenos_Aires", "+08:00", "-03:30"):
        check_time_zone("time_zone", good)
