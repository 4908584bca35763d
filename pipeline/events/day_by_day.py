"""Batches day by day: each impression is written by one job, the first one by which its attribution windows have closed.

              the base has written these  │  this job writes these        │  left to the next job
    ──────────────────────────────────────┼───────────────────────────────┼──────────────────────────▶ time
    tables from here or earlier on …   after_ms                        until_ms             … to the end of the log

`until_ms` stands in the manifest, and is `after_ms` of the job whose `vocabulary.base` the dataset is. The tables of a
job overlap with those of the job before, back to `after_ms`. The rows that the base has left are counted, so tables
that lack some of them stop the job.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.config.events import MS_PER_S, EventsSettings
from pipeline.errors import InputError
from pipeline.events.tables import EARLIER, IMMATURE

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

#: Of the manifest's audit.events: until when, and how many, impressions were written and left.
DAY_BY_DAY = "day_by_day"


@dataclass(frozen=True)
class LeftByBase:
    """What the base has written, and left."""

    after_ms: int = -1  # it has written every impression until then
    rows: int = 0  # that it has left, of the times (after_ms, until_ms]
    until_ms: int = -1

    @classmethod
    def of(cls, settings: EventsSettings, audit: Mapping[str, Any] | None) -> "LeftByBase":
        """Read it from the audit of the base's manifest; None without a base.

        Raises InputError where the base is none to continue, or the boundaries leave a gap behind it.
        """
        if audit is None:
            return cls()
        found = audit.get("events", {}).get(DAY_BY_DAY)
        if found is None:
            raise InputError(
                "vocabulary.base was made without source.events.day_by_day=true, so it does not say which impressions it has "
                "left; preprocess its day again with it."
            )
        t0_ms, after_ms = settings.boundaries_ms()[0], found["until_ms"]
        if t0_ms > after_ms + 1:
            raise InputError(
                f"source.events.boundaries begin at {_iso(t0_ms)}, and vocabulary.base has written impressions until "
                f"{_iso(after_ms)}: those in between would be lost; let the boundaries begin there, or earlier."
            )
        return cls(after_ms, found["left"], found["left_until_ms"])


@dataclass(frozen=True)
class DaySpan:
    """The times whose impressions a job writes: after `before.after_ms`, until `until_ms`."""

    before: LeftByBase
    until_ms: int
    end_ms: int  # of the actions log; later rows are not counted, because a wrong clock may have stamped them

    @classmethod
    def of(cls, settings: EventsSettings, before: LeftByBase, mature_until_ms: int, end_ms: int) -> "DaySpan":
        """Find the span of a job whose labels are known of impressions until `mature_until_ms`."""
        last_ms = settings.boundaries_ms()[3] - 1
        return cls(before, max(before.after_ms, min(mature_until_ms, last_ms)), end_ms)

    def status(self, status: "Column") -> "Column":
        """Return the status of a row in this job: earlier and immature rows are left out, whatever defect they have."""
        from pyspark.sql import functions as F

        at = F.col("at")
        is_open = (at > self.until_ms) & F.col("split").isNotNull()
        return F.when(at <= self.before.after_ms, EARLIER).when(is_open, IMMATURE).otherwise(status)

    def counts(self, rows: "DataFrame") -> dict[str, int]:
        """Count the rows on both sides of the span, for the audit.

        Raises InputError where the tables lack rows that the base has left.
        """
        from pyspark.sql import functions as F

        at, before = F.col("at"), self.before
        is_left = (at > self.until_ms) & (at <= self.end_ms)
        found = rows.agg(
            F.count_if(at <= before.after_ms).alias("earlier"),
            F.count_if((at > before.after_ms) & (at <= before.until_ms)).alias("from_base"),
            F.count_if(is_left).alias("left"),
            F.max(F.when(is_left, at)).alias("left_until_ms"),
        ).collect()[0]
        if found["from_base"] < before.rows:
            raise InputError(
                f"vocabulary.base has left {before.rows:,} impressions whose windows were open, from {_iso(before.after_ms)} "
                f"to {_iso(before.until_ms)}, and source.events.impressions has {found['from_base']:,} of that time; add the "
                "tables of the days before."
            )
        left_until_ms = found["left_until_ms"]
        return {
            "after_ms": before.after_ms,
            "until_ms": self.until_ms,
            "earlier": found["earlier"],
            "from_base": found["from_base"],
            "left": found["left"],
            "left_until_ms": self.until_ms if left_until_ms is None else left_until_ms,
        }


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / MS_PER_S, UTC).isoformat(timespec="milliseconds")
