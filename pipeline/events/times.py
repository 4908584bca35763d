"""Read a column of times as milliseconds since 1970 UTC, whatever its type: numbers, dates, ISO 8601 or a pattern.

The result depends on the log and its settings alone: not on today's date, nor on the machine's time zone or language.
settle() sees to what a Spark session could change about it.
"""

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DateType, TimestampNTZType, TimestampType

from pipeline.config.time_units import ISO, SECONDS_PER_UNIT, has_offset

_MS_PER_UNIT = {"s": "1000", "ms": "1", "us": "0.001", "ns": "0.000001"}
_YEAR_TEN_THOUSAND_MS = 253_402_300_800_000
# Spark also reads 10:01 (today's), 2024-05 and CST (US Central): a time without a full date, and a zone of several
# meanings, are none here.
_DATE, _CLOCK = r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}", r"[T ][0-9]{1,2}:[0-9]{1,2}(:[0-9]{1,2}(\.[0-9]{1,9})?)?"
_OFFSET = r" ?(Z|UTC|GMT|(UTC|GMT)?[+-][0-9]{1,2}(:?[0-9]{2})?|[A-Z][A-Za-z_]*(/[A-Za-z0-9_+-]+)+)"
_ISO_LOCAL = rf"^ *{_DATE}({_CLOCK})? *\z"
_ISO_ABSOLUTE = rf"^ *{_DATE}{_CLOCK}{_OFFSET} *\z"


def settle(spark: SparkSession) -> None:
    """Make times independent of the settings of a session."""
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    # Else a text that Spark 2 would have read differently ends the job.
    spark.conf.set("spark.sql.legacy.timeParserPolicy", "CORRECTED")


def milliseconds(column: Column, kind: DataType, unit: str, zone: str) -> Column:
    """Return a column's times as milliseconds since 1970 UTC; null where it is none, or not in the years 1970 to 9999.

    `zone` is that of times which name none themselves.
    """
    if isinstance(kind, TimestampType):
        at = F.unix_millis(column)
    elif isinstance(kind, TimestampNTZType | DateType):
        at = F.unix_millis(_in_zone(column.cast("timestamp"), zone))
    elif unit in SECONDS_PER_UNIT:
        at = F.floor(_product(column.cast("string").try_cast("decimal(30,6)"), unit)).try_cast("long")
    elif unit == ISO:
        at = F.unix_millis(_of_iso(column.cast("string"), zone))
    else:
        moment = F.try_to_timestamp(column.cast("string"), F.lit(unit))
        at = F.unix_millis(moment if has_offset(unit) else _in_zone(moment, zone))
    # Nearer to 2^63 ms, adding a window would overflow and stop the job.
    return F.when(at.between(0, _YEAR_TEN_THOUSAND_MS - 1), at)


def _product(number: Column, unit: str) -> Column:
    scale = 6 if unit == "ns" else 3
    return number * F.lit(_MS_PER_UNIT[unit]).cast(f"decimal(7,{scale})")


def _of_iso(text: Column, zone: str) -> Column:
    moment = F.try_to_timestamp(text)
    return F.when(text.rlike(_ISO_LOCAL), _in_zone(moment, zone)).when(text.rlike(_ISO_ABSOLUTE), moment)


def _in_zone(moment: Column, zone: str) -> Column:
    """Read a moment's UTC clock as that of `zone`. In an hour that the clock shows twice, it is the first one."""
    return moment if zone == "UTC" else F.to_utc_timestamp(moment, zone)
