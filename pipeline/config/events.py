"""The settings of `source=events`: which columns of the two tables mean what, the windows, and the boundaries in time."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.config.recorded import NEWER, recorded
from pipeline.config.tables import CSV, PARQUET, TableSettings, check_table
from pipeline.config.time_units import check_time_unit, check_time_zone
from pipeline.errors import InputError

CLICK, PURCHASE = "click", "purchase"
MS_PER_S = 1000
#: What `clean` does to a column's texts: ids that a table writes in its own way become equal only when that is said.
TRIM, LOWER, INTEGER = "trim", "lower", "integer"  # integer: 100.0 and 0100 are 100
CLEANINGS = (TRIM, LOWER, INTEGER)


@dataclass
class ImpressionsSettings(TableSettings):
    """`source.events.impressions`: one row an impression. Several columns for one thing are read as their tuple."""

    path: str = "impressions"
    format: str = PARQUET
    timestamp: str = "timestamp"
    user: list[str] = field(default_factory=lambda: ["user_id"])
    item: list[str] = field(default_factory=lambda: ["item_id"])  # a column, or several that are read as their tuple
    id: list[str] = field(default_factory=list)  # []: the id is made of user, item, context and timestamp
    context: list[str] = field(default_factory=list)  # []: the user's impressions within context_window_s
    click: str | None = None  # a column of 0 and 1, where the log says so itself; the impression's time counts
    click_time: str | None = field(default=None, metadata=NEWER)  # the column of its time, where known
    conversion: str | None = field(default=None, metadata=NEWER)  # likewise of a purchase; both need click
    conversion_time: str | None = field(default=None, metadata=NEWER)
    dactions: dict[str, str] = field(default_factory=dict, metadata=NEWER)  # likewise {cart: in_cart}
    daction_times: dict[str, str] = field(default_factory=dict, metadata=NEWER)
    time_unit: str | None = field(default=None, metadata=NEWER)  # of this table's times; null: source.events.time_unit
    time_zone: str | None = field(
        default=None, metadata=NEWER
    )  # of its times without an offset; null: source.events.time_zone
    clean: dict[str, list[str]] = field(
        default_factory=dict, metadata=NEWER
    )  # {item_id: [trim, lower, integer]}: what to do with the texts of a column
    where: dict[str, list[str]] = field(
        default_factory=dict, metadata=NEWER
    )  # {event: [pv]}: the rows with one of these texts; {}: all rows

    def without_labels(self) -> "ImpressionsSettings":
        """Return the settings of impressions that are not clicked yet."""
        return replace(
            self, click=None, click_time=None, conversion=None, conversion_time=None, dactions={}, daction_times={}
        )

    def label_columns(self) -> dict[str, tuple[str | None, str | None]]:
        """Return action → (the column that says whether it followed, the column of its time), where there is one."""
        columns = {CLICK: (self.click, self.click_time), PURCHASE: (self.conversion, self.conversion_time)}
        for kind in {**self.dactions, **self.daction_times}:
            columns[kind] = (self.dactions.get(kind), self.daction_times.get(kind))
        return {kind: names for kind, names in columns.items() if any(names)}


@dataclass
class ActionsSettings(TableSettings):
    """`source.events.actions`: one row an action."""

    path: str = "actions"
    format: str = PARQUET
    timestamp: str = "timestamp"
    user: list[str] = field(default_factory=lambda: ["user_id"])
    item: list[str] = field(default_factory=lambda: ["item_id"])  # as the impressions' item, in this table's columns
    action: str = "action"
    impression: list[str] = field(default_factory=list)  # the impression's id, where the log knows it
    time_unit: str | None = field(default=None, metadata=NEWER)  # of this table's times; null: source.events.time_unit
    time_zone: str | None = field(
        default=None, metadata=NEWER
    )  # of its times without an offset; null: source.events.time_zone
    clean: dict[str, list[str]] = field(
        default_factory=dict, metadata=NEWER
    )  # {item_id: [trim, lower, integer]}: what to do with the texts of a column
    where: dict[str, list[str]] = field(
        default_factory=dict, metadata=NEWER
    )  # {event: [pv]}: the rows with one of these texts; {}: all rows


@dataclass
class JoinSettings(TableSettings):
    """One of `source.events.joins`: a table with one row a key, whose columns are added to the impressions."""

    path: str = ""
    format: str = CSV
    by: list[str] = field(default_factory=list)  # columns of the impressions (not "on": YAML reads that as true)
    key: list[str] = field(default_factory=list)  # what the table calls them; empty: the same
    asof: str | None = field(default=None, metadata=NEWER)  # of a table with history: the time from which a row holds
    time_unit: str | None = field(default=None, metadata=NEWER)  # of asof; null: source.events.time_unit
    time_zone: str | None = field(default=None, metadata=NEWER)  # of asof; null: source.events.time_zone
    clean: dict[str, list[str]] = field(default_factory=dict, metadata=NEWER)  # {item_id: [trim, lower, integer]}


@dataclass
class EventsSettings:
    """`source.events`: see docs/events.md."""

    impressions: ImpressionsSettings = field(default_factory=ImpressionsSettings)
    actions: ActionsSettings = field(default_factory=ActionsSettings)
    joins: list[JoinSettings] = field(
        default_factory=list
    )  # [{path: items.csv, format: csv, by: [item_id], key: [id]}]
    names: dict[str, list[str]] = field(default_factory=dict)  # what the log calls each action; others are left out
    windows_s: dict[str, int] = field(default_factory=dict)  # a click's after the impression, the others' after it
    boundaries: list[str] = field(default_factory=list)  # train [t0,t1), validation [t1,t2), test [t2,t3); UTC
    actions_end: str | None = None  # until when the actions log is complete; null: its latest timestamp
    clock_skew_s: int = 0  # an action may be stamped this much before its impression
    context_window_s: int = 1800  # of a context, where impressions.context is []
    time_unit: str = "s"  # s | ms | us | ns since 1970 UTC, iso, or a pattern: yyyyMMdd HH:mm:ss; types need none
    time_zone: str = field(default="UTC", metadata=NEWER)  # of times without an offset, such as Asia/Shanghai or +08:00
    day_by_day: bool = field(
        default=False, metadata=NEWER
    )  # write what vocabulary.base has left, and leave what is immature to the next job
    list_separator: str = "|"  # of the values of a field of arity many, in text columns
    nulls: list[str] = field(default_factory=lambda: [""])  # texts that mean missing

    def __post_init__(self) -> None:
        for table, entry in (("impressions", self.impressions), ("actions", self.actions)):
            check_table(f"source.events.{table}", entry)
            for name in ("user", "item"):
                if not getattr(entry, name):
                    raise InputError(f"source.events.{table}.{name} is empty; name one column or more.")
            check_meaning(f"source.events.{table}", entry)
            _check_where(f"source.events.{table}.where", entry.where)
        check_time_unit("source.events.time_unit", self.time_unit)
        check_time_zone("source.events.time_zone", self.time_zone)
        for number, join in enumerate(self.joins):
            _check_join(number, join)
        self._check_actions()
        for key, least in (("clock_skew_s", 0), ("context_window_s", 1)):
            if (value := getattr(self, key)) < least:
                raise InputError(f"source.events.{key}={value} is below {least}; give {least} or more seconds.")
        if not self.list_separator:
            raise InputError("source.events.list_separator is empty; give the text between two values, such as '|'.")
        if self.boundaries:
            self.boundaries_ms()
        self.actions_end_ms()

    def _check_actions(self) -> None:
        for action, window in self.windows_s.items():
            if window < 0:
                raise InputError(f"source.events.windows_s.{action}={window} is negative; give seconds, 0 or more.")
        meaning: dict[str, str] = {}
        for action, names in self.names.items():
            for name in names:
                if name in meaning:
                    raise InputError(
                        f"source.events.names gives {name!r} to both {meaning[name]} and {action}; "
                        "an action of the log has one meaning."
                    )
                meaning[name] = action
        columns = self.impressions.label_columns()
        for action, own in columns.items():
            if self.names.get(action):
                key = {CLICK: "click", PURCHASE: "conversion"}.get(action, f"dactions.{action}")
                raise InputError(
                    f"source.events.impressions.{key}={own[0] or own[1]} and source.events.names.{action}="
                    f"{list(self.names[action])} both say what a {action} is; keep one and set the other to null or []."
                )
        if columns and CLICK not in columns:
            raise InputError(
                f"source.events.impressions has a column for {', '.join(columns)} and none for the click before it; "
                "name that column: source.events.impressions.click=COLUMN."
            )

    def boundaries_ms(self) -> tuple[int, int, int, int]:
        """Return t0, t1, t2, t3 in milliseconds since 1970 UTC. Raises InputError unless they are four that increase."""
        if len(self.boundaries) != 4:
            raise InputError(
                f"source.events.boundaries={list(self.boundaries)} are {len(self.boundaries)} times, not the four "
                "t0,t1,t2,t3 of train [t0,t1), validation [t1,t2) and test [t2,t3); "
                "for example source.events.boundaries=[2017-05-06,2017-05-11,2017-05-12,2017-05-13]."
            )
        t0, t1, t2, t3 = (time_ms("source.events.boundaries", text) for text in self.boundaries)
        if not t0 < t1 <= t2 < t3:
            raise InputError(
                f"source.events.boundaries={list(self.boundaries)} do not increase; give t0 < t1 <= t2 < t3 "
                "(t1 = t2 for no validation split)."
            )
        return t0, t1, t2, t3

    def actions_end_ms(self) -> int | None:
        """Return `actions_end` in milliseconds since 1970 UTC, None where it is not set."""
        return time_ms("source.events.actions_end", self.actions_end) if self.actions_end else None

    def label_actions(self, daction: list[str]) -> tuple[str, ...]:
        """List the actions that make labels: click, the dactions, purchase. Raises InputError where one is not described."""
        for action in daction:
            if action in (CLICK, PURCHASE):
                raise InputError(f"labels.daction names {action}, which is a label of its own; name cart, wish or so.")
        kinds = (CLICK, *daction, PURCHASE)
        columns = self.impressions.label_columns()
        for action in kinds:
            flag, time = columns.get(action, (None, None))
            if flag and not time:
                continue
            if not time and not self.names.get(action):
                known = ", ".join(self.names) or "none"
                raise InputError(
                    f"source.events.names has no {action} (it has: {known}), which makes a label; say what the log "
                    f"calls it: source.events.names.{action}=[NAME]."
                )
            if action not in self.windows_s:
                raise InputError(
                    f"source.events.windows_s has no {action} (it has: {', '.join(self.windows_s) or 'none'}); "
                    f"give its window in seconds, for example source.events.windows_s.{action}=86400."
                )
        return kinds

    def window_ms(self, action: str) -> int:
        """Return the window of an action: after the impression for a click, after the click for any other."""
        flag, time = self.impressions.label_columns().get(action, (None, None))
        return 0 if flag and not time else self.windows_s[action] * MS_PER_S

    def named_actions(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """List the actions of the actions table that make labels; none where columns of the impressions say all."""
        columns = self.impressions.label_columns()
        return tuple(kind for kind in kinds if kind not in columns)

    def reach_ms(self, kinds: tuple[str, ...]) -> int:
        """Return how long after an impression an action can still make a label of it."""
        return self.window_ms(CLICK) + max(self.window_ms(kind) for kind in kinds if kind != CLICK)

    def label_definitions(self, daction: list[str]) -> dict[str, str]:
        """Define each label in words, for the manifest."""
        after = {kind: f"{self.window_ms(kind) // MS_PER_S} s" for kind in (CLICK, *daction, PURCHASE)}
        columns = self.impressions.label_columns()
        is_click = (
            "the log's column says" if columns.get(CLICK, (None, ""))[1] is None else f"it came within {after[CLICK]}"
        )
        labels = {
            "click": f"the impression was clicked ({is_click})",
            "conversion": f"the impression was clicked and bought within {after[PURCHASE]} of the click",
        }
        if daction:
            within = " or ".join(f"{kind} within {after[kind]}" for kind in daction)
            labels["daction"] = f"the impression was clicked and followed by {within} of the click"
        return labels

    def determining(self) -> dict[str, Any]:
        """Return what decides the content of the dataset, for the manifest: all settings, with times in milliseconds."""
        return recorded(self) | {"boundaries": list(self.boundaries_ms()), "actions_end": self.actions_end_ms()}


def time_ms(key: str, text: str) -> int:
    """Parse an ISO 8601 time (UTC where it names no offset) or a number of seconds, as milliseconds since 1970.

    Raises InputError, of the setting `key`.
    """
    try:
        # Not int(): it takes 1_0 as well. Nor any number: datetime ends with the year 9999, and Spark's integers later.
        is_number = re.fullmatch(r"[+-]?[0-9]+", text)
        moment = datetime.fromtimestamp(int(text), UTC) if is_number else datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"{key} has {text!r}, which is no time; write it as 2017-05-06, 2017-05-06T16:00:00+08:00, or in seconds "
            "since 1970."
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * MS_PER_S)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{key}={value} is not one of {', '.join(allowed)}.")


def check_meaning(where: str, entry: ImpressionsSettings | ActionsSettings | JoinSettings) -> None:
    """Raise InputError for a unit or zone of times, or a cleaning, that there is not."""
    if entry.time_unit is not None:
        check_time_unit(f"{where}.time_unit", entry.time_unit)
    if entry.time_zone is not None:
        check_time_zone(f"{where}.time_zone", entry.time_zone)
    for column, cleanings in entry.clean.items():
        for cleaning in cleanings:
            _one_of(f"{where}.clean.{column}", cleaning, CLEANINGS)


def _check_where(key: str, where: Mapping[str, list[str]]) -> None:
    for column, texts in where.items():
        if not texts:
            raise InputError(f"{key}.{column} is empty, so no row would be read; give the texts of the rows to read.")


def _check_join(number: int, join: JoinSettings) -> None:
    where = f"source.events.joins[{number}]"
    check_table(where, join)
    check_meaning(where, join)
    if not (join.path or join.table) or not join.by:
        raise InputError(f"{where} needs a path and the columns of the impressions to join by, by=[COLUMN].")
    if join.key and len(join.key) != len(join.by):
        raise InputError(f"{where}.key={list(join.key)} and by={list(join.by)} differ in length; give one for each.")
