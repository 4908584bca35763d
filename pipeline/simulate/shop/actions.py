"""The actions log of the simulated shop: what follows the labels, and the actions that make none.

The times are such that attribution finds each label again: a click comes before the same user is shown the same item
again, a cart, a wish and a purchase before she clicks it again, and all of them within their windows. The other actions
are those of every real log; `outcomes` says what becomes of each, as audit.json counts it.
"""

# Shapes: B impressions, A actions.

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.config.events import CLICK, MS_PER_S, PURCHASE
from pipeline.simulate.oracle import ACTION_NAMES, Labels
from pipeline.simulate.shop.calendar import (
    ACTIONS_END_MS,
    CART,
    DAY_MS,
    DAYS,
    START_MS,
    WINDOWS_MS,
    WISH,
    days_of,
)
from pipeline.simulate.shop.page_views import PageViews

#: Mean time from the impression to the click, and from the click to the others; all of them are cut at the window.
_MEAN_DELAY_MS = {CLICK: 25 * MS_PER_S, CART: 600 * MS_PER_S, WISH: 1800 * MS_PER_S, PURCHASE: 6 * 3600 * MS_PER_S}
VIEW = "view"  # an action that makes no label
#: Shares of the number of clicks: actions on items that were never shown, carts without a click, clicks and purchases
#: that come too late, and actions that the log holds twice.
_ORGANIC, _CARTS_ALONE, _LATE_CLICKS, _LATE_PURCHASES, _DELIVERED_TWICE = 0.08, 0.03, 0.02, 0.02, 0.02


@dataclass(frozen=True)
class Actions:
    """The A rows of the log, in no order."""

    user: np.ndarray  # int64 [A]
    item: np.ndarray  # int64 [A]
    at_ms: np.ndarray  # int64 [A]
    name: np.ndarray  # str [A]
    outcomes: dict[str, dict[str, int]]  # kind → outcome → number; "other" for those that make no label


def draw_actions(rng: np.random.Generator, views: PageViews, labels: Labels) -> Actions:
    """Draw all actions that belong to the page views, given the labels of their impressions."""
    log = _Log(views)
    click_ms, next_click_ms = _click_times(rng, views, labels)
    clicked = np.flatnonzero(labels.click)
    log.add(CLICK, "attributed", clicked, click_ms[clicked])
    after = {kind: labels.action == ACTION_NAMES.index(kind) for kind in (CART, WISH)} | {PURCHASE: labels.conversion}
    for kind, happened in after.items():
        rows = np.flatnonzero(happened)
        limit = np.minimum(WINDOWS_MS[kind], next_click_ms[rows] - click_ms[rows] - 1)
        log.add(kind, "attributed", rows, click_ms[rows] + _delays(rng, kind, limit))
    log.repeat(rng, round(_DELIVERED_TWICE * len(clicked)))
    log.add(VIEW, "other", clicked, click_ms[clicked] + 1 * MS_PER_S)
    _add_late(rng, log, labels, click_ms, next_click_ms)
    _add_organic(rng, log, round(_ORGANIC * len(clicked)))
    return log.finish()


class _Log:
    """Actions as they are drawn, with what becomes of them."""

    def __init__(self, views: PageViews) -> None:
        self.views = views
        self._user, self._item = views.user[views.page], views.item.astype(np.int64)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._outcomes: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, outcome: str, rows: np.ndarray, at_ms: np.ndarray) -> None:
        """Add one action for each of the impressions `rows`."""
        self.add_of(kind, outcome, self._user[rows], self._item[rows], at_ms)

    def add_of(self, kind: str, outcome: str, user: np.ndarray, item: np.ndarray, at_ms: np.ndarray) -> None:
        """Add one action for each user and item."""
        assert (at_ms <= ACTIONS_END_MS).all(), "a simulated action comes after the end of the log"
        self._parts.append((user, item, at_ms, np.full(len(user), kind)))
        self._outcomes[kind, outcome] += len(user)

    def repeat(self, rng: np.random.Generator, number: int) -> None:
        """Deliver some of the actions so far, all of which make labels, a second time."""
        user, item, at_ms, name = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        chosen = rng.permutation(len(user))[:number]
        for kind in np.unique(name[chosen]).tolist():
            mine = chosen[name[chosen] == kind]
            self.add_of(kind, "attributed", user[mine], item[mine], at_ms[mine])

    def finish(self) -> Actions:
        user, item, at_ms, name = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        outcomes: dict[str, dict[str, int]] = {}
        for (kind, outcome), number in sorted(self._outcomes.items()):
            if number:
                outcomes.setdefault(kind, {})[outcome] = number
        return Actions(user, item, at_ms, name, outcomes)


def _click_times(rng: np.random.Generator, views: PageViews, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Return when each impression is clicked, and when the same user next clicks the same item: int64 [B] each.

    Both have a meaning only where `labels.click` is set.
    """
    at = views.shown_ms
    limit = np.minimum(WINDOWS_MS[CLICK], views.shown_next_ms() - at - 1)
    click_ms = at + _delays(rng, CLICK, limit)
    clicked = np.flatnonzero(labels.click)
    order = clicked[np.lexsort((click_ms[clicked], views.pair[clicked]))]
    next_click_ms = np.full(len(at), ACTIONS_END_MS + DAY_MS)
    is_same = views.pair[order][1:] == views.pair[order][:-1]
    next_click_ms[order[:-1][is_same]] = click_ms[order[1:][is_same]]
    return click_ms, next_click_ms


def _delays(rng: np.random.Generator, kind: str, limit: np.ndarray) -> np.ndarray:
    """Draw exponential delays that are no longer than `limit`, in milliseconds."""
    mean = _MEAN_DELAY_MS[kind]
    delay = -mean * np.log1p(rng.random(len(limit)) * np.expm1(-limit / mean))
    return np.minimum(delay.astype(np.int64), limit)


def _add_late(
    rng: np.random.Generator, log: _Log, labels: Labels, click_ms: np.ndarray, next_click_ms: np.ndarray
) -> None:
    """Add carts of impressions that were not clicked, clicks after their window, and purchases after theirs."""
    views, pair = log.views, log.views.pair
    number = int(labels.click.sum())
    is_early = days_of(views.shown_ms) < DAYS - 2
    never_clicked = np.flatnonzero(~np.isin(pair, pair[labels.click]) & is_early)
    chosen = rng.permutation(never_clicked)[: round(_CARTS_ALONE * number)]
    log.add(CART, "no_click", chosen, views.shown_ms[chosen] + rng.integers(1, DAY_MS, len(chosen)))
    is_last = views.shown_next_ms() > ACTIONS_END_MS
    chosen = rng.permutation(never_clicked[is_last[never_clicked]])[: round(_LATE_CLICKS * number)]
    too_late = WINDOWS_MS[CLICK] + rng.integers(1, DAY_MS, len(chosen))
    log.add(CLICK, "outside_window", chosen, views.shown_ms[chosen] + too_late)
    last_click = np.flatnonzero(labels.click & is_early & (next_click_ms > ACTIONS_END_MS))
    chosen = rng.permutation(last_click)[: round(_LATE_PURCHASES * number)]
    too_late = WINDOWS_MS[PURCHASE] + rng.integers(1, DAY_MS // 2, len(chosen))
    log.add(PURCHASE, "outside_window", chosen, click_ms[chosen] + too_late)


def _add_organic(rng: np.random.Generator, log: _Log, number: int) -> None:
    """Add clicks, carts and purchases of items that the page views never showed to that user."""
    views = log.views
    num_items = int(views.item.max()) + 1
    user = rng.choice(np.unique(views.user), number)
    item = rng.integers(0, num_items, number)
    is_unseen = ~np.isin(user * num_items + item, views.pair)
    user, item = user[is_unseen], item[is_unseen]
    at_ms = START_MS + rng.integers(0, DAYS * DAY_MS, len(user))
    kind = rng.choice([CLICK, CART, PURCHASE], len(user))
    for name in (CLICK, CART, PURCHASE):
        mine = kind == name
        log.add_of(name, "no_impression", user[mine], item[mine], at_ms[mine])
