"""Brute-force attribution: for each action, try every impression and every click of its user and item.

The slow twin of pipeline/events/attribute.py; the rules are those of docs/events.md, read one action at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import xxhash


@dataclass(frozen=True)
class Impression:
    user: str
    item: str
    at: int  # milliseconds
    id: int
    context: int
    clicked: bool = False
    defect: str = ""  # why it is rejected; it competes for actions all the same


@dataclass(frozen=True)
class Action:
    user: str
    item: str
    at: int
    kind: str
    named: int | None = None  # the id of the impression that it says it belongs to


@dataclass
class Labels:
    """The status of an impression, and the times of the actions attributed to it."""

    status: str
    split: int | None
    click_at: list[int] = field(default_factory=list)
    daction_at: list[int] = field(default_factory=list)
    conversion_at: list[int] = field(default_factory=list)

    def first(self, at: int, windows: dict[str, int]) -> tuple[Any, ...]:
        """Return (status, split, time of the first click, daction, conversion) within reach of an impression at `at`."""
        last_click = at + windows["click"]
        daction = max(window for kind, window in windows.items() if kind not in ("click", "purchase"))
        reached = [
            [time for time in times if time <= last]
            for times, last in (
                (self.click_at, last_click),
                (self.daction_at, last_click + daction),
                (self.conversion_at, last_click + windows["purchase"]),
            )
        ]
        is_known = self.status == "good" and reached[0]
        return (self.status, self.split, *(min(times) if times and is_known else None for times in reached))


@dataclass(frozen=True)
class Reference:
    windows: dict[str, int]  # milliseconds; click, dactions, purchase
    skew: int
    boundaries: tuple[int, int, int, int]
    end: int  # of the actions log
    one_anywhere: bool = False  # checks.duplicates=global

    def attribute(
        self, impressions: Sequence[Impression], actions: Sequence[Action]
    ) -> list[tuple[Action, str, Impression | None]]:
        """Return Return (action, outcome, its impression) of every action."""
        decided = []
        # When a click takes its place in the order, and the impression that it belongs to; times without the tolerance.
        clicks = [((i.at, 0, i.id, i.context), i.at, i) for i in impressions if i.clicked]
        for action in (action for action in actions if action.kind == "click"):
            meant = self._latest(impressions, action)
            if meant is None:
                decided.append((action, _nowhere(action), None))
            elif action.at - meant.at > self.windows["click"]:
                decided.append((action, "outside_window", None))
            else:
                place = (action.at + self.skew, 1, -1 if action.named is None else action.named, 0)
                clicks.append((place, action.at, meant))
                decided.append((action, "attributed", meant))
        for action in (action for action in actions if action.kind != "click"):
            before = [
                (place, at, shown)
                for place, at, shown in clicks
                if (shown.user, shown.item) == (action.user, action.item)
                and place[0] <= action.at + self.skew
                and action.named in (None, shown.id)
            ]
            if self._latest(impressions, action) is None:
                decided.append((action, _nowhere(action), None))
            elif not before:
                decided.append((action, "no_click", None))
            else:
                _, at, shown = max(before, key=lambda click: click[0])
                is_late = action.at - at > self.windows[action.kind]
                decided.append((action, "outside_window" if is_late else "attributed", None if is_late else shown))
        return decided

    def label(
        self, impressions: Sequence[Impression], actions: Sequence[Action]
    ) -> list[tuple[Impression, tuple[Any, ...]]]:
        """Return every impression with (status, split, time of click, of daction, of conversion)."""
        reach = self.windows["click"] + max(window for kind, window in self.windows.items() if kind != "click")
        labels = []
        for shown in impressions:
            split = next((s for s in range(3) if self.boundaries[s] <= shown.at < self.boundaries[s + 1]), None)
            status = "outside_split" if split is None else "immature" if shown.at + reach > self.end else "good"
            status = shown.defect or status
            labels.append((shown, Labels(status, split)))
        usable = [action for action in actions if action.at <= self.end]
        attributed = [
            (action.kind, action.at, shown) for action, _, shown in self.attribute(impressions, usable) if shown
        ]
        attributed += [("click", shown.at, shown) for shown in impressions if shown.clicked]
        for kind, at, target in attributed:
            for shown, label in labels:
                if self._is_copy(shown, target):
                    times = {"click": label.click_at, "purchase": label.conversion_at}.get(kind, label.daction_at)
                    times.append(at)
        return self._without_repeats(labels)

    def _is_copy(self, shown: Impression, other: Impression) -> bool:
        if self.one_anywhere:
            return (shown.id, shown.user, shown.item) == (other.id, other.user, other.item)
        return (shown.context, shown.user, shown.id) == (other.context, other.user, other.id)

    def _without_repeats(self, labels: list[tuple[Impression, Labels]]) -> list[tuple[Impression, tuple[Any, ...]]]:
        seen = set()
        out = []
        order = attrgetter("at", "user", "item", "context")
        for shown, label in sorted(labels, key=lambda entry: order(entry[0])):
            if label.status == "good":
                place = shown.id if self.one_anywhere else (shown.context, shown.user, shown.id)
                if place in seen:
                    label.status = "duplicate_impression"
                seen.add(place)
            out.append((shown, label.first(shown.at, self.windows)))
        return out

    def _latest(self, impressions: Sequence[Impression], action: Action) -> Impression | None:
        before = [
            shown
            for shown in impressions
            if (shown.user, shown.item) == (action.user, action.item)
            and shown.at <= action.at + self.skew
            and action.named in (None, shown.id)
        ]
        return max(before, key=lambda shown: (shown.at, shown.id, shown.context), default=None)


def own_contexts(impressions: Sequence[Impression]) -> Callable[[Impression], int]:
    """Return the function that gives an impression its context: one of its own user, where users share a key."""
    users: dict[int, set[str]] = {}
    for shown in impressions:
        users.setdefault(shown.context, set()).add(shown.user)

    def own_context(shown: Impression) -> int:
        if len(users[shown.context]) == 1:
            return shown.context
        return xxhash.xxh64(f"{shown.user}\x1f{shown.context}".encode(), seed=42).intdigest() & (2**63 - 1)

    return own_context


def _nowhere(action: Action) -> str:
    return "no_impression" if action.named is None else "unknown_impression"
