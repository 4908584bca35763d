"""What became of the rows of an event log, in numbers with example values: actions by outcome, impressions by reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from pipeline.config.events import EventsSettings
from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError
from pipeline.events.joins import matched_column
from pipeline.events.own_labels import LOST
from pipeline.events.read import TUPLE
from pipeline.events.tables import GOOD_STATUS, IMMATURE, LEFT_OUT, OUTSIDE_SPLIT

_NAME_BUCKETS = 5  # of each, the most frequent name that makes no label is an example
_LABEL_NAMES = ("click", "daction", "conversion")


@dataclass(frozen=True)
class ActionsRead:
    """The rows of the actions table, counted before attribution."""

    end_ms: int  # until when the log is complete
    counts: dict[str, int]  # read, malformed, other, after_end
    other_names: dict[str, int]  # names that make no label, of the most frequent ones


def scan(actions: DataFrame, settings: EventsSettings) -> ActionsRead:
    """Count the rows of each kind of defect, and find the end of the actions log."""
    known = settings.actions_end_ms()
    status, at = F.col("status"), F.col("at")
    is_after_end = (status == GOOD_STATUS) & (at > known) if known is not None else F.lit(False)
    by_name = actions.groupBy("status", F.when(status == "other", F.col("name")).alias("name")).agg(
        F.count("*").alias("rows"),
        F.count_if(is_after_end).alias("after_end"),
        F.max(F.when(status != "malformed", at)).alias("latest"),
    )
    # A log of a million names, by mistake, still gives a few rows.
    bucket = F.pmod(F.hash("name"), F.lit(_NAME_BUCKETS)).alias("bucket")
    found = by_name.groupBy("status", bucket).agg(
        F.sum("rows").alias("rows"), F.sum("after_end").alias("after_end"), F.max("latest").alias("latest"),
        F.max(F.struct("rows", "name")).alias("most"),
    ).collect()  # fmt: skip
    rows = {name: sum(row["rows"] for row in found if row["status"] == name) for name in ("malformed", "other")}
    read = sum(row["rows"] for row in found)
    latest = (
        known if known is not None else max((row["latest"] for row in found if row["latest"] is not None), default=None)
    )
    if latest is None:
        raise InputError(
            f"The actions log has no readable row among {read}, so its end is unknown; "
            "check source.events.actions and source.events.time_unit, or set source.events.actions_end."
        )
    names = sorted((-row["most"]["rows"], row["most"]["name"]) for row in found if row["status"] == "other")
    counts = {"read": read, **rows, "after_end": sum(row["after_end"] for row in found)}
    return ActionsRead(latest, counts, {name: -number for number, name in names})


def outcomes_of(attributed: DataFrame) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, str]]]:
    """Count actions: kind → outcome → number; and give the user and item of the earliest of each."""
    numbers: dict[str, dict[str, int]] = {}
    examples: dict[str, dict[str, str]] = {}
    first = F.min(F.struct("at", "user", "item")).alias("first")
    for row in (
        attributed.groupBy("kind", "outcome")
        .agg(F.count("*").alias("rows"), first)
        .orderBy("kind", "outcome")
        .collect()
    ):
        numbers.setdefault(row["kind"], {})[row["outcome"]] = row["rows"]
        examples.setdefault(row["kind"], {})[row["outcome"]] = (
            f"user {shown(row['first']['user'])}, item {shown(row['first']['item'])}"
        )
    return numbers, examples


@dataclass(frozen=True)
class ImpressionsRead:
    """The rows of the labelled impressions, counted."""

    counts: Sequence[Row]  # by status and split: rows, first, last, without_item, the labels, the matches of joins
    defects: Sequence[Row]  # of rejected rows, by status and column: rows, value (an example); the most frequent first
    lost: dict[str, dict[str, int]]  # label → reason → rows whose own label does not count
    shared_contexts: int
    shared_impressions: int

    def total(self, name: str, status: str | None = None) -> int:
        """Sum one count, over all statuses or of one."""
        return sum(row[name] for row in self.counts if status in (None, row["status"]))

    def by_status(self) -> dict[str, int]:
        """Count the rows of each status."""
        return {status: self.total("rows", status) for status in sorted({row["status"] for row in self.counts})}

    def rejected(self) -> dict[str, int]:
        """Count the rows of each reason for which rows are rejected."""
        kept = (GOOD_STATUS, *LEFT_OUT)
        return {status: number for status, number in self.by_status().items() if status not in kept}

    def left_out(self) -> dict[str, Any]:
        """Count the impressions that were read, and of these the ones that the dataset leaves out though they are good."""
        immature = dict.fromkeys(SPLITS, 0)
        for row in self.counts:
            if row["status"] == IMMATURE:
                immature[SPLITS[row["split"]]] += row["rows"]
        outside = self.total("rows", OUTSIDE_SPLIT)
        return {"read": self.total("rows"), "outside_split": outside, "immature": immature}

    def span(self) -> tuple[int, int] | None:
        """Return the first and the last time; None without any."""
        times = [row[name] for row in self.counts for name in ("first", "last") if row[name] is not None]
        return (min(times), max(times)) if times else None


def impressions_read(labelled: DataFrame, num_joins: int) -> ImpressionsRead:
    """Count the labelled impressions."""
    matched = [F.count_if(matched_column(number)).alias(matched_column(number)) for number in range(num_joins)]
    counts = labelled.groupBy("status", "split").agg(
        F.count("*").alias("rows"), F.min("at").alias("first"), F.max("at").alias("last"),
        F.count_if(F.col("item").isNull() & F.col("user").isNotNull()).alias("without_item"),
        F.count("shared_key").alias("shared"), *(F.count(f"{label}_at").alias(label) for label in _LABEL_NAMES),
        *(F.count(name).alias(name) for name in LOST), *matched,
    ).collect()  # fmt: skip
    found = ImpressionsRead(counts, (), {}, 0, 0)
    defects: Sequence[Row] = ()
    if found.rejected():
        column = F.col("defect")["column"].alias("column")
        by_column = labelled.where(F.col("defect").isNotNull()).groupBy("status", column)
        by_column = by_column.agg(F.count("*").alias("rows"), F.min(F.col("defect")["value"]).alias("value"))
        defects = sorted(by_column.collect(), key=lambda row: (-row["rows"], row["status"], row["column"]))
    lost: dict[str, dict[str, int]] = {}
    for label, name in zip(_LABEL_NAMES, LOST, strict=True):
        if found.total(name):
            rows = labelled.where(F.col(name).isNotNull()).groupBy(name).count().orderBy(name).collect()
            lost[label] = {row[name]: row["count"] for row in rows}
    contexts = 0
    if shared := found.total("shared"):
        contexts = labelled.agg(F.count_distinct("shared_key")).collect()[0][0]
    return ImpressionsRead(counts, defects, lost, contexts, shared)


def shown(text: str | None) -> str:
    """Quote a value of the log for a message; of a tuple, its parts."""
    return "none" if text is None else ", ".join(repr(part) for part in text.split(TUPLE))
