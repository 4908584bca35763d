"""How a log may write its times: numbers since 1970 UTC, ISO 8601, or a pattern of letters, and in which time zone.

A time needs a full date. Without one it would mean today's, and the dataset would depend on the day of the run.
"""

import re
from zoneinfo import ZoneInfo

from pipeline.errors import InputError

ISO = "iso"
#: Seconds of a number; such a time is absolute.
SECONDS_PER_UNIT = {"s": "1", "ms": "0.001", "us": "0.000001", "ns": "0.000000001"}
_OFFSET_LETTERS = "XxZ"
#: Runs of letters that a pattern may have, as Spark reads them; any other run is refused.
_RUNS = re.compile(r"y{1,4}|M{1,4}|d{1,2}|DDD|H{1,2}|h{1,2}|m{1,2}|s{1,2}|S{1,9}|a|[Xx]{1,3}|Z{1,3}|VV")
_ZONE = re.compile(r"[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)+|UTC|[+-][0-9]{2}:[0-9]{2}")


def check_time_unit(key: str, unit: str) -> None:
    """Raise InputError unless `unit` is a unit, iso, or a pattern with a year, a month and a day."""
    if unit in SECONDS_PER_UNIT or unit == ISO:
        return
    rule = f"{key}={unit} is not one of {', '.join(SECONDS_PER_UNIT)}, {ISO}, nor a pattern such as yyyyMMdd HH:mm:ss"
    if "%" in unit:
        raise InputError(f"{rule}; write the letters of Java's DateTimeFormatter: %Y-%m-%d is yyyy-MM-dd.")
    if unit.count("'") % 2:
        raise InputError(f"{rule}; a quoted text in it has no end.")
    runs = letters_of(unit)
    if bad := next((run for run in runs if not _RUNS.fullmatch(run)), None):
        hints = {
            "Y": "; the year is yyyy",
            "u": "; the year is yyyy",
            "D": "; the day of the month is dd",
            "z": "; an offset is XXX",
        }
        raise InputError(f"{rule}; the letters {bad!r} are none that it may have{hints.get(bad[0], '')}.")
    first = {run[0] for run in runs}
    if not ("y" in first and ("D" in first or {"M", "d"} <= first)):
        raise InputError(f"{rule}; a time needs its year, month and day, or it would depend on the day of the run.")
    if "h" in first and "a" not in first:
        raise InputError(f"{rule}; hh is an hour up to 12 and needs a (AM or PM); HH goes up to 23.")


def check_time_zone(key: str, zone: str) -> None:
    """Raise InputError unless `zone` is UTC, an offset or a region; abbreviations name several zones each."""
    try:
        if not _ZONE.fullmatch(zone):
            raise ValueError("no region")
        if zone[0] in "+-":
            if int(zone[1:3]) > 18 or int(zone[4:6]) > 59:
                raise ValueError("no offset")
        else:
            ZoneInfo(zone)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{key}={zone} is no time zone; write a region or an offset, such as Asia/Shanghai, UTC or +08:00 "
            "(abbreviations such as CST mean several zones)."
        ) from error


def letters_of(pattern: str) -> list[str]:
    """List the runs of equal letters of a pattern, outside its quoted texts."""
    return [found.group() for found in re.finditer(r"([A-Za-z])\1*", re.sub(r"'[^']*'", "", pattern))]


def has_offset(pattern: str) -> bool:
    """Tell whether texts of a pattern name their own zone."""
    return any(run[0] in _OFFSET_LETTERS or run == "VV" for run in letters_of(pattern))
