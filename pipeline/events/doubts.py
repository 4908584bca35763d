"""Doubts about a whole event log, each with its likely cause: what else would go wrong without a word.

A label without a positive, a joined table without a match, an empty split, an end of the actions that one wrong clock
has set, page views that several users share. The settings `checks` say whether a doubt warns or stops the job.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.config.events import CLICK, MS_PER_S, PURCHASE, EventsSettings
from pipeline.config.preprocess import FAIL, ChecksSettings
from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError
from pipeline.events.attribute import ATTRIBUTED
from pipeline.events.causes import first_cause, without_spelling
from pipeline.events.joins import key_texts, matched_column
from pipeline.events.outcomes import ActionsRead, ImpressionsRead, shown
from pipeline.events.rows import Periods
from pipeline.events.tables import GOOD_STATUS, IMMATURE, EventLog

_VALUES_COMPARED = 200
_ONE_DAY_MS = 86_400_000
_FEW_ACTIONS, _FEW_PER_CENT = 10, 1  # as many may lie behind the others because of wrong clocks


@dataclass(frozen=True)
class Findings:
    """All that is known of a log once it is labelled."""

    log: EventLog
    settings: EventsSettings
    kinds: tuple[str, ...]
    periods: Periods
    actions: DataFrame  # rows.actions_of
    impressions: DataFrame  # rows.impressions_of
    attributed: DataFrame
    labelled: DataFrame
    actions_read: ActionsRead | None  # None where columns of the impressions are the labels
    outcomes: Mapping[str, Mapping[str, int]]
    read: ImpressionsRead


def doubts_of(spark: SparkSession, found: Findings) -> list[dict[str, str]]:
    """List the doubts: check, and message."""
    every = (
        ("label_without_positive", _labels_without_positive(found)),
        ("join_without_match", _joins_without_match(spark, found)),
        ("empty_split", _empty_splits(found)),
        ("actions_end", _wild_end(found)),
        ("shared_context", _shared_contexts(found)),
    )
    return [{"check": check, "message": message} for check, messages in every for message in messages]


def stop_at_failing_doubts(doubts: Sequence[Mapping[str, str]], checks: ChecksSettings) -> None:
    """Raise InputError for the first doubt that `checks` stops at."""
    for doubt in doubts:
        if getattr(checks, doubt["check"]) == FAIL:
            raise InputError(
                f"{doubt['message']} checks.{doubt['check']}=fail stops there; correct it, or set "
                f"checks.{doubt['check']}=warn."
            )


def _labels_without_positive(found: Findings) -> Iterator[str]:
    dactions = tuple(kind for kind in found.kinds if kind not in (CLICK, PURCHASE))
    for label, kinds in (("click", (CLICK,)), ("daction", dactions), ("conversion", (PURCHASE,))):
        if kinds and not found.read.total(label, GOOD_STATUS):
            yield f"No impression of the dataset has the label {label}: {_cause_without_positive(found, label, kinds)}."


def _cause_without_positive(found: Findings, label: str, kinds: Sequence[str]) -> str:
    named = set(found.settings.named_actions(found.kinds))
    of_table = [kind for kind in kinds if kind in named]
    if not of_table:
        columns = found.settings.impressions.label_columns()
        names = ", ".join(name for kind in kinds for name in columns[kind] if name)
        lost = ", ".join(f"{number} {reason}" for reason, number in found.read.lost.get(label, {}).items())
        return f"the column {names} of the impressions says so of none" + (f" that counts ({lost})" if lost else "")
    outcomes: dict[str, int] = {}
    for kind in of_table:
        for outcome, number in found.outcomes.get(kind, {}).items():
            outcomes[outcome] = outcomes.get(outcome, 0) + number
    what = " or ".join(of_table)
    if not outcomes:
        return _cause_of_unknown_names(found, of_table)
    if ATTRIBUTED in outcomes:
        return (
            f"all {outcomes[ATTRIBUTED]} {what} actions that were attributed belong to impressions that are quarantined, immature or "
            "outside the splits"
        )
    outcome = max(outcomes, key=lambda name: outcomes[name])
    most = f"{outcomes[outcome]} of {sum(outcomes.values())} {what} actions have the outcome {outcome}"
    if outcome in ("no_impression", "unknown_impression"):
        return f"{most}; {_cause_of_no_impression(found, of_table, outcome)}"
    if outcome == "no_click":
        return f"{most}: no click was attributed before them"
    windows = ", ".join(f"windows_s.{kind}={found.settings.windows_s[kind]}" for kind in of_table)
    return f"{most}: they come later than source.events.{windows}"


def _cause_of_unknown_names(found: Findings, kinds: Sequence[str]) -> str:
    assert found.actions_read is not None
    names = [name for kind in kinds for name in found.settings.names[kind]]
    others = found.actions_read.other_names
    there = ", ".join(f"{name!r} ({number})" for name, number in others.items())
    text = f"no action of the log is called {' or '.join(map(repr, names))}"
    if pair := first_cause(others, names):
        one, other, cause, cleanings = pair
        clean = f"{{{found.settings.actions.action}: [{', '.join(cleanings)}]}}"
        return (
            f"{text}, but {others[one]} are called {one!r}, which differs in {cause}; set "
            f"source.events.actions.clean={clean}, or add the name to source.events.names.{_kind_of(found, other)}"
        )
    return f"{text}; those that make no label are called {there or 'nothing else'}"


def _kind_of(found: Findings, name: str) -> str:
    return next(kind for kind, names in found.settings.names.items() if name in names)


def _cause_of_no_impression(found: Findings, kinds: Sequence[str], outcome: str) -> str:
    """Look for the users and items of these actions among those of the impressions."""
    mine = found.attributed.where(F.col("kind").isin(list(kinds)) & (F.col("outcome") == outcome))
    of_actions, of_impressions = found.settings.actions, found.settings.impressions
    for name, own, theirs in (
        ("item", of_actions.item, of_impressions.item),
        ("user", of_actions.user, of_impressions.user),
    ):
        values = _first_values(mine.select(name))
        others = _alike(found.impressions.select(name), values)
        if set(values) & set(others):
            continue
        if pair := first_cause(values, others):
            one, other, cause, cleanings = pair
            clean = ", ".join(cleanings)
            return (
                f"actions have the {name} {shown(one)} and impressions {shown(other)}, which differ in {cause}; set "
                f"source.events.actions.clean={{{own[0]}: [{clean}]}} and source.events.impressions.clean="
                f"{{{theirs[0]}: [{clean}]}}"
            )
        example = _first_values(found.impressions.select(name))[:1]
        return (
            f"no {name} of theirs, such as {shown(values[0])}, is one of an impression, such as "
            f"{shown(example[0] if example else None)}; check source.events.actions.{name} and impressions.{name}"
        )
    first, last = mine.agg(F.min("at"), F.max("at")).collect()[0]
    span = found.read.span()
    assert span is not None
    return (
        f"their users and items have impressions, but not both together at or before the action: actions lie from "
        f"{utc(first)} to {utc(last)}, impressions from {utc(span[0])} to {utc(span[1])}; check time_unit and time_zone "
        "of both tables"
    )


def _joins_without_match(spark: SparkSession, found: Findings) -> Iterator[str]:
    for number, join in enumerate(found.settings.joins):
        if found.read.total(matched_column(number)):
            continue
        mine, theirs = key_texts(spark, found.log, found.settings, number)
        values = _first_values(mine)
        others = _alike(theirs, values)
        name = f"source.events.joins[{number}]"
        text = f"No impression finds a row in {name}.path={join.path}"
        if set(values) & set(others):
            yield f"{text}: the keys are there, but every row begins to hold later than the impressions; check {name}.asof."
        elif pair := first_cause(values, others):
            one, other, cause, cleanings = pair
            clean = ", ".join(cleanings)
            yield (
                f"{text}: impressions have the key {shown(one)} and the table {shown(other)}, which differ in {cause}; set "
                f"source.events.impressions.clean={{{join.by[0]}: [{clean}]}} and {name}.clean="
                f"{{{(join.key or join.by)[0]}: [{clean}]}}."
            )
        else:
            example = _first_values(theirs)[:1]
            yield (
                f"{text}: impressions have keys such as {shown(values[0] if values else None)} and the table has "
                f"{shown(example[0] if example else None)}; check {name}.by and key."
            )


def _empty_splits(found: Findings) -> Iterator[str]:
    for place, split in enumerate(SPLITS):
        is_wanted = found.periods.boundaries_ms[place] < found.periods.boundaries_ms[place + 1]
        if is_wanted and (message := empty_split(found.read, found.periods, place)):
            yield f"The {split} split has no impression: {message}."


def empty_split(read: ImpressionsRead, periods: Periods, place: int) -> str:
    """Say why a split is empty; "" where it is not."""
    mine = {row["status"]: row["rows"] for row in read.counts if row["split"] == place}
    if GOOD_STATUS in mine:
        return ""
    start, end = (utc(ms) for ms in periods.boundaries_ms[place : place + 2])
    if not mine:
        span = read.span()
        where = f"; they lie from {utc(span[0])} to {utc(span[1])}" if span else ""
        return f"none lies from {start} to {end}{where}"
    found = ", ".join(f"{number} are {status}" for status, number in sorted(mine.items()))
    late = f" (labels are known of impressions until {utc(periods.mature_until_ms)})" if IMMATURE in mine else ""
    return f"of those from {start} to {end}, {found}{late}"


def _wild_end(found: Findings) -> Iterator[str]:
    span = found.read.span()
    if found.actions_read is None or found.settings.actions_end is not None or span is None:
        return
    end, last = found.actions_read.end_ms, span[1]
    if end <= last + _ONE_DAY_MS:
        return
    good = F.col("status") != "malformed"
    total, after = found.actions.agg(F.count_if(good), F.count_if(good & (F.col("at") > last + _ONE_DAY_MS))).collect()[
        0
    ]
    if after <= _FEW_ACTIONS or after * 100 <= total * _FEW_PER_CENT:
        yield (
            f"The actions end at {utc(end)}, {(end - last) // _ONE_DAY_MS} days after the last impression ({utc(last)}), and "
            f"{after} of {total} actions lie more than a day after it. One wrong clock makes impressions count as known that "
            "are not; set source.events.actions_end to the time until which the actions log is complete."
        )


def _shared_contexts(found: Findings) -> Iterator[str]:
    if not found.read.shared_contexts:
        return
    of_key = found.labelled.where(F.col("shared_key").isNotNull()).groupBy("shared_key")
    most = of_key.agg(
        F.count_distinct("user").alias("users"), F.count("*").alias("rows"), F.min("user").alias("one"), F.max("user").alias("other")
    ).orderBy(F.desc("users"), F.desc("rows"), "shared_key").first()  # fmt: skip
    assert most is not None
    page = found.impressions.where(F.col("context_key") == most["shared_key"]).agg(F.min("page")).collect()[0][0]
    columns = ", ".join(found.settings.impressions.context) or "the context"
    yield (
        f"{found.read.shared_contexts} values of {columns} are shared by several users ({found.read.shared_impressions} "
        f"impressions); {shown(page)} by {most['users']}, such as {shown(most['one'])} and {shown(most['other'])}, in "
        f"{most['rows']} impressions. Each user has contexts of its own. If the value is a default, add it to "
        "source.events.nulls; if a user logs in within a page view, actions of the new user find no earlier impression."
    )


def _first_values(frame: DataFrame) -> list[str]:
    """Return the first values of a frame's only column."""
    (name,) = frame.columns
    rows = frame.where(F.col(name).isNotNull()).distinct().orderBy(name).limit(_VALUES_COMPARED).collect()
    return [row[0] for row in rows]


def _alike(frame: DataFrame, values: Sequence[str]) -> list[str]:
    """Return the values of a frame's only column that mean the same as one of `values`."""
    (name,) = frame.columns
    return _first_values(
        frame.where(without_spelling_column(F.col(name)).isin([without_spelling(value) for value in values]))
    )


def without_spelling_column(text: Column) -> Column:
    """Compute causes.without_spelling()."""
    steps = ((r"^\s+|\s+$", ""), (r"^([+-]?[0-9]+)\.0*$", "$1"), (r"^([+-]?)0+(?=[0-9])", "$1"))
    return F.lower(reduce(lambda found, step: F.regexp_replace(found, *step), steps, text))


def utc(ms: int) -> str:
    """Write a time for a message."""
    return datetime.fromtimestamp(ms / MS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
