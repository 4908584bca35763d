"""The first stage of source=events: attribute, label, and leave labelled impressions where the next stages read them.

JSON lines ─parsed()─▶ staging/parsed-…
actions ─scan()─▶ how far the log reaches ─▶ attribute() ─▶ staging/attributed
impressions ∪ labels ─labelled()─▶ staging/labelled ─▶ counts, and the rows set aside in an order of their own
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from pipeline.events import attribute as events
from pipeline.events.json_lines import parsed
from pipeline.events.read import GOOD, IMMATURE, OUTSIDE, Periods, actions_of, impressions_of
from pipeline.events.reader import EventReader
from pipeline.events.tables import EventLog
from pipeline.features.fields import Catalogue

_LINE_SHOWN = 200  # characters of a row in a message
_REPEATED = "duplicate_impression"


@dataclass(frozen=True)
class LabelledLog:
    """What the next stages read instead of the raw files, and the counts of this one."""

    sources: tuple[SourceFile, ...]  # by ordinal: contexts, impressions, rows set aside
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

    Raises InputError where no impression is left (and says why), or a row has a defect that `checks` stops at.
    """
    kinds = settings.label_actions(list(daction))
    # Also for joins and counts, which take Spark's 200 otherwise: so many tasks to count ten rows.
    spark.conf.set("spark.sql.shuffle.partitions", num_partitions)
    log = parsed(spark, log, settings, catalogue, staging)
    actions = actions_of(spark, log.actions, settings, kinds)
    end_ms, read = scan(actions, settings)
    periods = Periods(settings.boundaries_ms(), end_ms - settings.reach_ms(kinds))
    with_files = impressions_of(spark, log, settings, catalogue, periods)
    impressions = with_files.drop("file")
    one_anywhere = checks.duplicates == GLOBAL
    rules = events.Rules(
        {kind: settings.window_ms(kind) for kind in kinds},
        settings.clock_skew_s * MS_PER_S,
        bool(settings.actions.impression),
        one_anywhere,
    )
    attributed = events.attribute(
        impressions.where(F.col("user").isNotNull()),
        actions.where((F.col("status") == GOOD) & (F.col("at") <= end_ms)),
        rules,
        num_partitions,
    )
    attributed = _stored(attributed, staging / "attributed")
    labels = events.labels_of(attributed, kinds)
    rows = events.labelled(impressions, labels, events.reaches_ms(rules), num_partitions, one_anywhere)
    rows = _stored(rows, staging / "labelled")
    counts = rows.groupBy("status", "split").agg(F.count("*").alias("rows"), F.min("at"), F.max("at")).collect()
    _stop_without_impressions(counts, periods, end_ms)
    aside = rows.where(~F.col("status").isin(GOOD, OUTSIDE, IMMATURE)).select("status", "split", "line")
    _stop_at_failures(with_files, aside, counts, checks)
    aside = _stored(aside.repartition(1).sortWithinPartitions("status", "split", "line"), staging / "aside")
    audit = {
        "actions": read | {"outcomes": _outcomes(attributed)},
        "actions_end_ms": end_ms,
        "impressions": _set_aside(counts),
    }
    return _as_sources(staging, catalogue, log, audit)


def scan(actions: DataFrame, settings: EventsSettings) -> tuple[int, dict[str, int]]:
    """(until when the actions log is complete, how many rows it has of each kind of defect)."""
    known = settings.actions_end_ms()
    status, at = F.col("status"), F.col("at")
    is_after_end = (status == GOOD) & (at > known) if known is not None else F.lit(False)
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
            f"The actions log has no readable row among {found['read']}, so nobody knows until when it is complete; "
            "check source.events.actions and source.events.time_unit, or set source.events.actions_end."
        )
    return latest, {name: found[name] for name in ("read", "malformed", "other", "after_end")}


def _outcomes(attributed: DataFrame) -> dict[str, dict[str, int]]:
    """kind → outcome → number of actions."""
    found: dict[str, dict[str, int]] = {}
    for row in attributed.groupBy("kind", "outcome").count().orderBy("kind", "outcome").collect():
        found.setdefault(row["kind"], {})[row["outcome"]] = row["count"]
    return found


def _set_aside(counts: Sequence[Row]) -> dict[str, Any]:
    """Count the impressions that were read, and are no rows of the dataset though nothing is wrong with them."""
    immature = dict.fromkeys(SPLITS, 0)
    for row in counts:
        if row["status"] == IMMATURE:
            immature[SPLITS[row["split"]]] += row["rows"]
    outside = sum(row["rows"] for row in counts if row["status"] == OUTSIDE)
    return {"read": sum(row["rows"] for row in counts), "outside_split": outside, "immature": immature}


def _stop_without_impressions(counts: Sequence[Row], periods: Periods, end_ms: int) -> None:
    if any(row["status"] == GOOD for row in counts):
        return
    times = [row[name] for row in counts for name in ("min(at)", "max(at)") if row[name] is not None]
    span = f"from {_shown(min(times))} to {_shown(max(times))}" if times else "at no readable time"
    by_status: dict[str, int] = {}
    for row in counts:
        by_status[row["status"]] = by_status.get(row["status"], 0) + row["rows"]
    found = ", ".join(f"{number} {status}" for status, number in sorted(by_status.items())) or "none at all"
    t0, _, _, t3 = periods.boundaries_ms
    raise InputError(
        f"No impression is left: {found}. They lie {span}, the splits from {_shown(t0)} to {_shown(t3)}, and labels are "
        f"known of impressions until {_shown(periods.mature_until_ms)}, for the actions end at {_shown(end_ms)}; "
        "check source.events.time_unit, boundaries and actions_end."
    )


def _stop_at_failures(impressions: DataFrame, aside: DataFrame, counts: Sequence[Row], checks: ChecksSettings) -> None:
    present = {row["status"] for row in counts} - {GOOD, OUTSIDE, IMMATURE}
    for reason in sorted(reason for reason in present if getattr(checks, reason) == FAIL):
        line = aside.where(F.col("status") == reason).agg(F.min("line")).collect()[0][0]
        raise InputError(
            f"{_file_with(impressions, reason, line)} has {reason} ({rules_of('events')[reason]}) in the row {line[:_LINE_SHOWN]}, and "
            f"checks.{reason}=fail stops there; mend the row, or set checks.{reason}=quarantine."
        )


def _file_with(impressions: DataFrame, reason: str, line: str) -> str:
    """The file with a row that was set aside; the name of the table where the shuffle has lost sight of it."""
    if reason == _REPEATED:
        return "impressions"
    rows = impressions.where((F.col("status") == reason) & (F.col("line") == line))
    files = rows.select("file").distinct().collect()
    address = min((row["file"] for row in files), default="")
    return unquote(re.sub("^file:/*", "/", address)) or "impressions"


def _shown(ms: int) -> str:
    return datetime.fromtimestamp(ms / MS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _stored(frame: DataFrame, path: Path) -> DataFrame:
    """Write and read again: what follows reads it more than once."""
    address = f"file:{path}"
    frame.write.parquet(address)
    return frame.sparkSession.read.schema(frame.schema).parquet(address)


def _as_sources(staging: Path, catalogue: Catalogue, log: EventLog, audit: Mapping[str, Any]) -> LabelledLog:
    """Every labelled file twice, for its contexts and for its impressions.

    All files of a table share one ordinal: the order of a context's rows is theirs in time (in_context), not the files'.
    """
    files = sorted((staging / "labelled").glob("*.parquet"))
    aside = next((staging / "aside").glob("*.parquet"), None)
    tables = [(CONTEXT, "impressions", ""), (SKELETON, "impressions", ""), (SKELETON, "impressions", str(aside))]
    sources = tuple(
        SourceFile(ordinal, name, path, 0, table, "", False) for ordinal, (table, name, path) in enumerate(tables)
    )
    splits = [
        InputSplit(SourceFile(ordinal, "impressions", str(file), 0, table, "", False), 0, 0)
        for ordinal, table in enumerate((CONTEXT, SKELETON))
        for file in files
    ]
    if aside:
        splits.append(InputSplit(sources[2], 0, 0))
    return LabelledLog(sources, tuple(splits), EventReader(catalogue, str(aside)), log, dict(audit))
