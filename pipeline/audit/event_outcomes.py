"""What happened to the rows of an event log, in lines for the terminal and tables for audit.html."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import printable

Events = Mapping[str, Any]  # audit.json's `events`

_OUTCOMES_SHOWN = ("attributed", "no_impression", "unknown_impression", "no_click", "outside_window")


class ImpressionRow(NamedTuple):
    """Impressions that went one way, and what is to be known about it."""

    what: str
    number: int
    note: str


def impression_rows(events: Events) -> list[ImpressionRow]:
    """List where the impressions went: read = written + quarantined + immature + outside the splits."""
    found = events["impressions"]
    if "written" not in found:  # a dataset of an earlier release
        return []
    quarantined, immature = found["quarantined"], found["immature"]
    rows = [
        ImpressionRow("read", found["read"], ""),
        ImpressionRow("written", found["written"], _without_item(found)),
        ImpressionRow("quarantined", sum(quarantined.values()), printable(_defects(found))),
        ImpressionRow("immature", sum(immature.values()), _counts(immature)),
        ImpressionRow("outside the splits", found["outside_split"], ""),
    ]
    if found["shared_contexts"]:
        note = f"{found['shared_contexts']:,} values; each user has contexts of its own"
        rows.append(ImpressionRow("of contexts that users share", found["of_shared_contexts"], note))
    return rows


def event_lines(events: Events) -> list[str]:
    """Say what happened to the impressions, the actions and the joins, a line each."""
    rows = impression_rows(events)
    if not rows:
        return []
    of_impressions = ", ".join(f"{row.number:,} {row.what}" + (f" ({row.note})" if row.note else "") for row in rows)
    lines = [f"impressions: {of_impressions}"]
    actions = events["actions"]
    if "read" in actions:
        names = _counts({repr(name): number for name, number in actions["other_names"].items()})
        other = f"{actions['other']:,} with a name that makes no label" + (f" ({names})" if names else "")
        lines.append(
            f"actions: {actions['read']:,} read, {actions['malformed']:,} malformed, {other}, {actions['after_end']:,} after the end"
        )
    for kind, counts in actions["outcomes"].items():
        found = [
            f"{counts[outcome]:,} {outcome.replace('_', ' ')}" + _example(actions, kind, outcome)
            for outcome in _OUTCOMES_SHOWN
            if outcome in counts
        ]
        lines.append(f"  {kind}: {', '.join(found)}")
    for label, lost in events.get("labels_in_columns", {}).items():
        text = _counts({reason.replace("_", " "): number for reason, number in lost.items()}) or "all count"
        lines.append(f"  {label}, a column of the impressions: {text}")
    for number, (path, matched, share, malformed) in enumerate(join_matches(events)):
        unread = f", {malformed:,} of its lines cannot be read (malformed_line)" if malformed else ""
        lines.append(f"joins[{number}] {path}: {matched:,} impressions match ({share:.1%}){unread}")
    return [printable(line) for line in lines]


def event_warnings(events: Events) -> list[str]:
    """List the doubts about the log as a whole."""
    return [printable(doubt["message"]) for doubt in events.get("warnings", ())]


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items() if number)


def _without_item(found: Events) -> str:
    number = found["without_item"]
    return f"{number:,} without an item, which no action can be matched with" if number else ""


def _defects(found: Events) -> str:
    """Name the reasons, each with its most frequent column and an example."""
    parts = []
    for reason, number in found["quarantined"].items():
        column = next((row for row in found["defects"] if row["status"] == reason), None)
        parts.append(f"{number:,} {reason}" + (f": {_defect_text(column)}" if column else ""))
    return "; ".join(parts)


def _defect_text(row: Mapping[str, Any]) -> str:
    if not row["column"]:
        return f"the row {row['value']!r}"
    return f"{row['column']} is " + ("empty" if row["value"] is None else repr(row["value"]))


def _example(actions: Events, kind: str, outcome: str) -> str:
    example = actions["examples"].get(kind, {}).get(outcome)
    return f" ({example})" if example and outcome != _OUTCOMES_SHOWN[0] else ""


def join_matches(events: Events) -> Sequence[tuple[str, int, float, int]]:
    """List (path, impressions that match, their share, lines that cannot be read) of each joined table."""
    read = events["impressions"]["read"]
    return [
        (join["path"], join["matched"], join["matched"] / read if read else 0.0, join.get("malformed", 0))
        for join in events.get("joins", ())
    ]
