"""The first stage of source=events: attribute, label, and write labelled impressions for the next stages.

CSV, JSON lines, … ─parse_tables()─▶ staging/parsed-…
actions ─scan()─▶ the end of the actions log ─▶ attribute() ─▶ staging/attributed
impressions ∪ labels ─label_impressions()─▶ staging/labelled ─▶ counts, and rejected rows, sorted ─▶ staging/rejected
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.chunks.reasons import rules_of
from pipeline.chunks.sources import CONTEXT, SKELETON, InputSplit, SourceFile
from pipeline.config.events import CLICK, MS_PER_S, PURCHASE, EventsSettings
from pipeline.config.preprocess import FAIL, GLOBAL, ChecksSettings
from pipeline.errors import InputError
from pipeline.events.attribute import Rules, attribute, label_impressions, labels_of, reaches_ms
from pipeline.events.day_by_day import DAY_BY_DAY, DaySpan, LeftByBase
from pipeline.events.doubts import Findings, doubts_of, empty_split, stop_at_failing_doubts, utc
from pipeline.events.joins import matched_column
from pipeline.events.outcomes import ImpressionsRead, impressions_read, outcomes_of, scan
from pipeline.events.parse_tables import parse_tables
from pipeline.events.reader import EventReader
from pipeline.events.rejected_lines import path_of_rejected, write_rejected_lines
from pipeline.events.rows import Periods, actions_of, attributed_columns, impressions_of
from pipeline.events.tables import GOOD_STATUS, LEFT_OUT, EventLog
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
    audit: dict[str, Any]  # for the manifest and audit.json
    details: dict[str, Any]  # for audit.json alone, below the same keys


def label(
    spark: SparkSession,
    log: EventLog,
    settings: EventsSettings,
    catalogue: Catalogue,
    daction: Sequence[str],
    checks: ChecksSettings,
    num_partitions: int,
    staging: Path,
    needs_train: bool = True,
    left_by_base: LeftByBase | None = None,
) -> LabelledLog:
    """Write labelled impressions below `staging`; day by day where `left_by_base` is given.

    Raises InputError where no impression is left, or with `needs_train` none of train, with the reason; and where a row
    has a defect, or the log gives a doubt, that `checks` stops at.
    """
    kinds = settings.label_actions(list(daction))
    # Joins and counts would take Spark's default of 200 partitions otherwise, however small the log.
    spark.conf.set("spark.sql.shuffle.partitions", num_partitions)
    settle(spark)
    log = parse_tables(spark, log, settings, catalogue, num_partitions, staging)
    unread = write_rejected_lines(spark, log.joins, checks, staging)
    named_kinds = settings.named_actions(kinds)
    actions = actions_of(spark, log.actions, settings, named_kinds) if named_kinds else _no_actions(spark)
    actions_read = scan(actions, settings) if named_kinds else None
    end_ms = actions_read.end_ms if actions_read else _end_of_columns(spark, log, settings, catalogue)
    periods = Periods(settings.boundaries_ms(), end_ms - settings.reach_ms(kinds))
    span = DaySpan.of(settings, left_by_base, periods.mature_until_ms, end_ms) if left_by_base else None
    read = impressions_of(
        spark, log, settings, catalogue, replace(periods, mature_until_ms=_ANY_TIME) if span else periods,
        checks.missing_item,
    )  # fmt: skip
    impressions = read.drop("file", "page")
    one_anywhere = checks.duplicates == GLOBAL
    rules = Rules(
        {kind: settings.window_ms(kind) for kind in kinds},
        settings.clock_skew_s * MS_PER_S,
        bool(settings.actions.impression),
        bool(settings.impressions.click_time),
        one_anywhere,
    )
    attributed = attribute(
        impressions.where(F.col("user").isNotNull() & F.col("item").isNotNull()),
        actions.where((F.col("status") == GOOD_STATUS) & (F.col("at") <= end_ms)),
        rules,
        num_partitions,
    )
    attributed = _write_and_read(attributed, staging / "attributed")
    labels = labels_of(attributed, kinds)
    carried = attributed_columns(len(settings.joins))
    restate = span.status if span else None
    rows = label_impressions(impressions, labels, reaches_ms(rules), num_partitions, one_anywhere, carried, restate)
    rows = _write_and_read(rows, staging / "labelled")
    counted = impressions_read(rows, len(settings.joins))
    continued = span.counts(rows) if span else None
    _stop_without_impressions(counted, periods, end_ms, settings, needs_train)
    rejected = rows.where(~F.col("status").isin(GOOD_STATUS, *LEFT_OUT)).select("status", "split", "line")
    _stop_at_failing_rows(read, rejected, counted, checks)
    outcomes, examples = outcomes_of(attributed)
    found = Findings(
        log, settings, kinds, periods, actions, read, attributed, rows, actions_read, outcomes, counted
    )  # fmt: skip
    doubts = doubts_of(spark, found)
    stop_at_failing_doubts(doubts, checks)
    _write_and_read(rejected.repartition(1).sortWithinPartitions("status", "split", "line"), staging / "rejected")
    audit = {
        "actions": (actions_read.counts if actions_read else {}) | {"outcomes": outcomes},
        "actions_end_ms": end_ms,
        "impressions": counted.left_out(),
    }
    if continued:
        audit[DAY_BY_DAY] = continued
    return _as_sources(staging, catalogue, log, audit, _details(found, examples, doubts, unread))


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
    settings = replace(settings, impressions=settings.impressions.without_labels(), names={}, windows_s={})
    spark.conf.set("spark.sql.shuffle.partitions", num_partitions)
    settle(spark)
    log = parse_tables(spark, log, settings, catalogue, num_partitions, staging)
    always = Periods((0, _ANY_TIME, _ANY_TIME, _ANY_TIME), _ANY_TIME)
    with_files = impressions_of(spark, log, settings, catalogue, always)
    impressions = with_files.drop("file", "page")
    reaches = dict.fromkeys(("click_at", "daction_at", "conversion_at"), 0)
    columns = ("user", "item", "context_key", "impression_id", *reaches)
    unread = attributed_columns(len(settings.joins))
    rows = label_impressions(
        impressions, impressions.limit(0).select(*columns), reaches, num_partitions, checks.duplicates == GLOBAL, unread
    )
    rows = _write_and_read(rows, staging / "labelled")
    read = impressions_read(rows, len(settings.joins))
    if GOOD_STATUS not in read.by_status():
        found = ", ".join(f"{number} {status}" for status, number in read.by_status().items()) or "none at all"
        raise InputError(
            f"No impression can be read: {found}; check source.events.impressions, time_unit and the fields' columns."
        )
    rejected = rows.where(F.col("status") != GOOD_STATUS).select("status", "split", "line")
    _stop_at_failing_rows(with_files, rejected, read, checks)
    _write_and_read(rejected.repartition(1).sortWithinPartitions("status", "split", "line"), staging / "rejected")
    return _as_sources(staging, catalogue, log, {"impressions": {"read": read.total("rows")}}, {})


def _no_actions(spark: SparkSession) -> DataFrame:
    columns = "status string, user string, item string, at long, kind string, named_id long, name string"
    return spark.createDataFrame([], columns)


def _end_of_columns(spark: SparkSession, log: EventLog, settings: EventsSettings, catalogue: Catalogue) -> int:
    """Return until when labels are known that are all columns of the impressions: until the latest time in them."""
    if (known := settings.actions_end_ms()) is not None:
        return known
    anywhere = Periods(settings.boundaries_ms(), 0)
    times = ("at", "click_at", "daction_at", "conversion_at")
    rows = impressions_of(spark, log, settings, catalogue, anywhere)
    latest = rows.agg(F.max(F.greatest(*times))).collect()[0][0]
    return 0 if latest is None else int(latest)


def _details(
    found: Findings,
    examples: Mapping[str, Mapping[str, str]],
    doubts: Sequence[Mapping[str, str]],
    unread: Sequence[int],
) -> dict[str, Any]:
    """Return what audit.json says beyond the manifest."""
    read, settings = found.read, found.settings
    details: dict[str, Any] = {
        "actions": {
            "examples": examples,
            "other_names": found.actions_read.other_names if found.actions_read else {},
        },
        "impressions": {
            "written": read.total("rows", GOOD_STATUS),
            "quarantined": read.rejected(),
            "without_item": read.total("without_item", GOOD_STATUS),
            "defects": [row.asDict() for row in read.defects],
            "shared_contexts": read.shared_contexts,
            "of_shared_contexts": read.shared_impressions,
        },
        "joins": [
            {
                "path": join.table or join.path,
                "matched": read.total(matched_column(number)),
                "malformed": unread[number],
            }
            for number, join in enumerate(settings.joins)
        ],
        "warnings": list(doubts),
    }
    if columns := settings.impressions.label_columns():
        names = {CLICK: "click", PURCHASE: "conversion"}
        labels = dict.fromkeys(names.get(kind, "daction") for kind in columns)
        details["labels_in_columns"] = {label: read.lost.get(label, {}) for label in labels}
    return details


def _stop_without_impressions(
    read: ImpressionsRead, periods: Periods, end_ms: int, settings: EventsSettings, needs_train: bool
) -> None:
    """Raise InputError without a good impression, or one of train; name the most frequent reason, its column and a value."""
    by_status = read.by_status()
    if GOOD_STATUS in by_status:
        if needs_train and (why := empty_split(read, periods, 0)):
            raise InputError(
                f"The train split has no impression, so there is nothing to learn from: {why}; check "
                "source.events.boundaries, actions_end and windows_s."
            )
        return
    found = ", ".join(f"{number} {status}" for status, number in by_status.items()) or "none at all"
    if read.defects and read.defects[0]["rows"] >= max(by_status.get(name, 0) for name in LEFT_OUT):
        most = read.defects[0]
        where = (
            f"the column {most['column']} has {most['value']!r}" if most["column"] else f"the row is {most['value']!r}"
        )
        if most["column"] and most["value"] is None:
            where = f"the column {most['column']} is empty"
        unit = settings.impressions.time_unit or settings.time_unit
        remedy = f"check time_unit={unit}, and " if most["column"] == settings.impressions.timestamp else "check "
        raise InputError(
            f"No impression is left: {found}. The most frequent reason is {most['status']} "
            f"({rules_of('events')[most['status']]}): {where}, for example, as one of {most['rows']} rows; {remedy}"
            "source.events.impressions."
        )
    span = read.span()
    lie = f"from {utc(span[0])} to {utc(span[1])}" if span else "at no readable time"
    t0, _, _, t3 = periods.boundaries_ms
    raise InputError(
        f"No impression is left: {found}. They lie {lie}, the splits from {utc(t0)} to {utc(t3)}, and labels are "
        f"known of impressions until {utc(periods.mature_until_ms)}, because the actions end at {utc(end_ms)}; "
        "check source.events.time_unit, boundaries and actions_end."
    )


def _stop_at_failing_rows(
    impressions: DataFrame, rejected: DataFrame, read: ImpressionsRead, checks: ChecksSettings
) -> None:
    for reason in sorted(reason for reason in read.rejected() if getattr(checks, reason) == FAIL):
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


def _write_and_read(frame: DataFrame, path: Path) -> DataFrame:
    """Write a frame as Parquet and return it from there, because what follows reads it more than once."""
    address = f"file:{path}"
    frame.write.parquet(address)
    return frame.sparkSession.read.schema(frame.schema).parquet(address)


def _as_sources(
    staging: Path, catalogue: Catalogue, log: EventLog, audit: dict[str, Any], details: dict[str, Any]
) -> LabelledLog:
    """List every labelled file twice, for its contexts and for its impressions, and the file of rejected rows.

    All files of a table have one ordinal, because a context's rows are ordered by time (in_context), not by file.
    """
    files = sorted((staging / "labelled").glob("*.parquet"))
    tables = [(CONTEXT, "impressions", ""), (SKELETON, "impressions", "")]
    rejected = [(SKELETON, "impressions", next((staging / "rejected").glob("*.parquet"), None))]
    for number, table in enumerate(log.joins):
        lines = next(path_of_rejected(staging, number).glob("*.parquet"), None)
        rejected += [(CONTEXT, table.files[0].name, lines)] if lines else []
    sources = tuple(
        SourceFile(ordinal, name, str(path), 0, table, "", False)
        for ordinal, (table, name, path) in enumerate([*tables, *rejected])
    )
    splits = [
        InputSplit(SourceFile(ordinal, "impressions", str(file), 0, table, "", False), 0, 0)
        for ordinal, table in enumerate((CONTEXT, SKELETON))
        for file in files
    ]
    splits += [
        InputSplit(source, 0, 0) for source, (_, _, path) in zip(sources[len(tables) :], rejected, strict=True) if path
    ]
    reader = EventReader(catalogue, tuple(str(path) for _, _, path in rejected))
    return LabelledLog(sources, tuple(splits), reader, log, audit, details)
