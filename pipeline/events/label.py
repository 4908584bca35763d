"""The first stage of source=events: attribute, label, and write labelled impressions for the next stages.

CSV, JSON lines, … ─parse_tables()─▶ staging/parsed-…
actions ─scan()─▶ the end of the actions log ─▶ attribute() ─▶ staging/attributed
impressions ∪ labels ─label_impressions()─▶ staging/labelled ─▶ counts, and rejected rows, sorted ─▶ staging/rejected
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from pipeline.chunks.reasons import rules_of
from pipeline.chunks.sources import CONTEXT, SKELETON, InputSplit, SourceFile
from pipeline.config.events import MS_PER_S, EventsSettings
from pipeline.config.preprocess import FAIL, GLOBAL, ChecksSettings
from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError
from pipeline.events.attribute import Rules, attribute, label_impressions, labels_of, reaches_ms
from pipeline.events.parse_tables import parse_tables
from pipeline.events.reader import EventReader
from pipeline.events.rows import Periods, actions_of, impressions_of
from pipeline.events.tables import GOOD_STATUS, IMMATURE, OUTSIDE_SPLIT, EventLog
from pipeline.events.times import settle
from pipeline.features.fields import Catalogue

_CHARACTERS_QUOTED = 200  # of a row in an error message
_DUPLICATE = "duplicate_impression"
_ANY_TIME = (1 << 63) - 1  # milliseconds: no impression is later


@dataclass(frozen=True)
class LabelledLog:
    """The labelled impressions, which the next stages read instead of the raw files, and the counts of this stage."""

    sources: tuple[SourceFile, ...]  # by ordinal: contexts, impressions, rejected rows
    splits: tuple[InputSplit, ...]
    reader: EventReader
    log: EventLog  # with its JSON lines parsed
    audit: dict[str, Any]


def label(
    spark: SparkSession,
    log: EventLog,
    settings: EventsSettings,
    catalogue: Catalogue,
    daction: Sequence[str],
    checks: ChecksSettings,
    num_partitions: int,
    staging: Path,
) -> LabelledLog:
    """Write labelled impressions below `staging`.

    Raises InputError where no impression is left, with the reason, or where a row has a defect that `checks` stops at.
    """
    kinds = settings.label_actions(list(daction))
    # Joins and counts would take Spark's default of 200 partitions otherwise, however small the log.
    spark.conf.set("spark.sql.shuffle.partitions", num_partitions)
    settle(spark)
    log = parse_tables(spark, log, settings, catalogue, num_partitions, staging)
    actions = actions_of(spark, log.actions, settings, kinds)
    end_ms, read = scan(actions, settings)
    periods = Periods(settings.boundaries_ms(), end_ms - settings.reach_ms(kinds))
    with_files = impressions_of(spark, log, settings, catalogue, periods)
    impressions = with_files.drop("file")
    one_anywhere = checks.duplicates == GLOBAL
    rules = Rules(
        {kind: settings.window_ms(kind) for kind in kinds},
        settings.clock_skew_s * MS_PER_S,
        bool(settings.actions.impression),
        one_anywhere,
    )
    attributed = attribute(
        impressions.where(F.col("user").isNotNull()),
        actions.where((F.col("status") == GOOD_STATUS) & (F.col("at") <= end_ms)),
        rules,
        num_partitions,
    )
    attributed = _write_and_read(attributed, staging / "attributed")
    labels = labels_of(attributed, kinds)
    rows = label_impressions(impressions, labels, reaches_ms(rules), num_partitions, one_anywhere)
    rows = _write_and_read(rows, staging / "labelled")
    counts = rows.groupBy("status", "split").agg(F.count("*").alias("rows"), F.min("at"), F.max("at")).collect()
    _stop_without_impressions(counts, periods, end_ms)
    rejected = rows.where(~F.col("status").isin(GOOD_STATUS, OUTSIDE_SPLIT, IMMATURE)).select("status", "split", "line")
    _stop_at_failing_rows(with_files, rejected, counts, checks)
    _write_and_read(rejected.repartition(1).sortWithinPartitions("status", "split", "line"), staging / "rejected")
    audit = {
        "actions": read | {"outcomes": _outcomes(attributed)},
        "actions_end_ms": end_ms,
        "impressions": _count_left_out(counts),
    }
    return _as_sources(staging, catalogue, log, audit)


def number_impressions(
    spark: SparkSession,
    log: EventLog,
    settings: EventsSettings,
    catalogue: Catalogue,
    checks: ChecksSettings,
    num_partitions: int,
    staging: Path,
) -> LabelledLog:
    """Write the impressions of a log as `label` does, but all of them, of any time and without a label.

    Actions and the log's own clicks are not read. Raises InputError where no impression is good.
    """
    settings = replace(settings, impressions=replace(settings.impressions, click=None), names={}, windows_s={})
    spark.conf.set("spark.sql.shuffle.partitions", num_partitions)
    settle(spark)
    log = parse_tables(spark, log, settings, catalogue, num_partitions, staging)
    with_files = impressions_of(
        spark, log, settings, catalogue, Periods((0, _ANY_TIME, _ANY_TIME, _ANY_TIME), _ANY_TIME)
    )
    impressions = with_files.drop("file")
    reaches = dict.fromkeys(("click_at", "daction_at", "conversion_at"), 0)
    one_anywhere = checks.duplicates == GLOBAL
    carried = ("user", "item") if one_anywhere else ()
    none = impressions.limit(0).select(
        *carried, "context_key", "impression_id", *(F.col("at").alias(name) for name in reaches)
    )
    rows = label_impressions(impressions, none, reaches, num_partitions, one_anywhere)
    rows = _write_and_read(rows, staging / "labelled")
    counts = rows.groupBy("status", "split").agg(F.count("*").alias("rows")).collect()
    if not any(row["status"] == GOOD_STATUS for row in counts):
        found = ", ".join(f"{row['rows']} {row['status']}" for row in counts) or "none at all"
        raise InputError(
            f"No impression can be read: {found}; check source.events.impressions, time_unit and the fields' columns."
        )
    rejected = rows.where(F.col("status") != GOOD_STATUS).select("status", "split", "line")
    _stop_at_failing_rows(with_files, rejected, counts, checks)
    _write_and_read(rejected.repartition(1).sortWithinPartitions("status", "split", "line"), staging / "rejected")
    return _as_sources(staging, catalogue, log, {"impressions": {"read": sum(row["rows"] for row in counts)}})


def scan(actions: DataFrame, settings: EventsSettings) -> tuple[int, dict[str, int]]:
    """Return (the end of the actions log in milliseconds, how many rows it has of each kind of defect)."""
    known = settings.actions_end_ms()
    status, at = F.col("status"), F.col("at")
    is_after_end = (status == GOOD_STATUS) & (at > known) if known is not None else F.lit(False)
    found = actions.agg(
        F.count("*").alias("read"),
        F.count_if(status == "malformed").alias("malformed"),
        F.count_if(status == "other").alias("other"),
        F.count_if(is_after_end).alias("after_end"),
        F.max(F.when(status != "malformed", at)).alias("latest"),
    ).collect()[0]
    latest = known if known is not None else found["latest"]
    if latest is None:
        raise InputError(
            f"The actions log has no readable row among {found['read']}, so its end is unknown; "
            "check source.events.actions and source.events.time_unit, or set source.events.actions_end."
        )
    return latest, {name: found[name] for name in ("read", "malformed", "other", "after_end")}


def _outcomes(attributed: DataFrame) -> dict[str, dict[str, int]]:
    """Count actions: kind → outcome → number."""
    found: dict[str, dict[str, int]] = {}
    for row in attributed.groupBy("kind", "outcome").count().orderBy("kind", "outcome").collect():
        found.setdefault(row["kind"], {})[row["outcome"]] = row["count"]
    return found


def _count_left_out(counts: Sequence[Row]) -> dict[str, Any]:
    """Count the impressions that were read, and of these the ones that the dataset leaves out though they are good."""
    immature = dict.fromkeys(SPLITS, 0)
    for row in counts:
        if row["status"] == IMMATURE:
            immature[SPLITS[row["split"]]] += row["rows"]
    outside = sum(row["rows"] for row in counts if row["status"] == OUTSIDE_SPLIT)
    return {"read": sum(row["rows"] for row in counts), "outside_split": outside, "immature": immature}


def _stop_without_impressions(counts: Sequence[Row], periods: Periods, end_ms: int) -> None:
    if any(row["status"] == GOOD_STATUS for row in counts):
        return
    times = [row[name] for row in counts for name in ("min(at)", "max(at)") if row[name] is not None]
    span = f"from {_utc(min(times))} to {_utc(max(times))}" if times else "at no readable time"
    by_status: dict[str, int] = {}
    for row in counts:
        by_status[row["status"]] = by_status.get(row["status"], 0) + row["rows"]
    found = ", ".join(f"{number} {status}" for status, number in sorted(by_status.items())) or "none at all"
    t0, _, _, t3 = periods.boundaries_ms
    raise InputError(
        f"No impression is left: {found}. They lie {span}, the splits from {_utc(t0)} to {_utc(t3)}, and labels are "
        f"known of impressions until {_utc(periods.mature_until_ms)}, because the actions end at {_utc(end_ms)}; "
        "check source.events.time_unit, boundaries and actions_end."
    )


def _stop_at_failing_rows(
    impressions: DataFrame, rejected: DataFrame, counts: Sequence[Row], checks: ChecksSettings
) -> None:
    present = {row["status"] for row in counts} - {GOOD_STATUS, OUTSIDE_SPLIT, IMMATURE}
    for reason in sorted(reason for reason in present if getattr(checks, reason) == FAIL):
        line = rejected.where(F.col("status") == reason).agg(F.min("line")).collect()[0][0]
        raise InputError(
            f"{_file_with(impressions, reason, line)} has {reason} ({rules_of('events')[reason]}) in the row "
            f"{line[:_CHARACTERS_QUOTED]}, and checks.{reason}=fail stops there; fix the row, or set "
            f"checks.{reason}=quarantine."
        )


def _file_with(impressions: DataFrame, reason: str, line: str) -> str:
    """Find the file of a rejected row; of a duplicate, whose file the shuffle does not carry, the table's name."""
    if reason == _DUPLICATE:
        return "impressions"
    rows = impressions.where((F.col("status") == reason) & (F.col("line") == line))
    files = rows.select("file").distinct().collect()
    address = min((row["file"] for row in files), default="")
    return unquote(re.sub("^file:/*", "/", address)) or "impressions"


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / MS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_and_read(frame: DataFrame, path: Path) -> DataFrame:
    """Write a frame as Parquet and return it from there, because what follows reads it more than once."""
    address = f"file:{path}"
    frame.write.parquet(address)
    return frame.sparkSession.read.schema(frame.schema).parquet(address)


def _as_sources(staging: Path, catalogue: Catalogue, log: EventLog, audit: Mapping[str, Any]) -> LabelledLog:
    """List every labelled file twice, for its contexts and for its impressions, and the file of rejected rows.

    All files of a table have one ordinal, because a context's rows are ordered by time (in_context), not by file.
    """
    files = sorted((staging / "labelled").glob("*.parquet"))
    rejected = next((staging / "rejected").glob("*.parquet"), None)
    tables = [(CONTEXT, "impressions", ""), (SKELETON, "impressions", ""), (SKELETON, "impressions", str(rejected))]
    sources = tuple(
        SourceFile(ordinal, name, path, 0, table, "", False) for ordinal, (table, name, path) in enumerate(tables)
    )
    splits = [
        InputSplit(SourceFile(ordinal, "impressions", str(file), 0, table, "", False), 0, 0)
        for ordinal, table in enumerate((CONTEXT, SKELETON))
        for file in files
    ]
    if rejected:
        splits.append(InputSplit(sources[2], 0, 0))
    return LabelledLog(sources, tuple(splits), EventReader(catalogue, str(rejected)), log, dict(audit))
