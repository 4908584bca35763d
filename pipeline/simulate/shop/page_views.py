"""Page views of the simulated shop: who looks when, what she has viewed before, and which items the page shows.

Each day has its own stream of random numbers, (seed, day). The days are drawn with the kernel of layout=aliccp, so the
same world lies behind both: a taste for each user, a vector for each item, and lists that reveal the taste.
"""

# Shapes: B impressions, C page views, E entries of the users' lists.

from dataclasses import dataclass

import numpy as np

from pipeline.config.events import MS_PER_S
from pipeline.simulate.draw import ImpressionColumns, draw_impressions
from pipeline.simulate.published_figures import MIN_PER_CATEGORY, Quantiles
from pipeline.simulate.shop.calendar import DAY_MS, DAYS, FIRST_LATER_DAY, HOURS, START_MS
from pipeline.simulate.world import CHUNK, WORLD, Scores, SimulatedWorld, draw_world

#: Impressions of a page view: mean about 10.
_PAGE_SIZE = Quantiles((1, 0.95, 0.8, 0.5, 0.2, 0.02, 1e-4), (1, 3, 6, 10, 14, 22, 30))
#: Values in the lists of a page view, of all four kinds together; the tables show categories and brands.
_LIST_SIZE = Quantiles((1, 0.9, 0.6, 0.3, 0.05, 1e-3), (2, 8, 20, 40, 90, 200))
_IMPRESSIONS_PER_USER = 80
_CATEGORIES, _LEAST_ITEMS = 40, 400
#: Share of the users who are there on a day; the rest come later, or have left.
_PRESENT = 0.7
#: A user's page views are at least so far apart, so that no two of them show an item at one moment.
_LEAST_GAP_MS = 60 * MS_PER_S
_LONGER_THAN_ANY_LOG_MS = 10**12


@dataclass(frozen=True)
class PageViews:
    """C page views, in the order in which they were drawn, and their B impressions."""

    user: np.ndarray  # int64 [C]: row of the world's user tables
    at_ms: np.ndarray  # int64 [C]
    entry_taxa: np.ndarray  # int32 [E]: what the user has viewed before, page view by page view
    entry_counts: np.ndarray  # int32 [E]
    entry_ends: np.ndarray  # int64 [C]: page view c owns the entries [end[c - 1], end[c])
    page: np.ndarray  # int64 [B]: the page view of each impression, rising
    item: np.ndarray  # int32 [B]; no item stands twice on a page
    taxa: np.ndarray  # int32 [4, B]: category, shop, brand, first tag
    num_tags: np.ndarray  # int64 [B]
    placement: np.ndarray  # int8 [B]
    affinity: np.ndarray  # float64 [B]

    @property
    def scores(self) -> Scores:
        """The inputs of the probabilities."""
        size = np.bincount(self.page, minlength=len(self.user))
        return Scores(self.affinity, self.user[self.page], self.taxa, self.placement, size[self.page])

    @property
    def pair(self) -> np.ndarray:
        """The user and the item of each impression as one number, int64 [B]."""
        return self.user[self.page] * (int(self.item.max()) + 1) + self.item

    @property
    def shown_ms(self) -> np.ndarray:
        """The time of each impression, int64 [B]: that of its page view."""
        return self.at_ms[self.page]

    def place_on_page(self) -> np.ndarray:
        """Number the impressions of each page view from 0, int64 [B]."""
        return np.arange(len(self.page)) - np.searchsorted(self.page, self.page)

    def shown_next_ms(self) -> np.ndarray:
        """Return when the same user is shown the same item again, int64 [B]; long after the log where never."""
        pair, at = self.pair, self.shown_ms
        order = np.lexsort((at, pair))
        following = np.full(len(order), START_MS + _LONGER_THAN_ANY_LOG_MS)
        is_same = pair[order][1:] == pair[order][:-1]
        following[:-1][is_same] = at[order][1:][is_same]
        result = np.empty_like(following)
        result[order] = following
        return result


def draw_shop_world(seed: int, impressions: int) -> SimulatedWorld:
    """Draw the users and items of a shop with so many impressions in ten days."""
    users = max(60, impressions // _IMPRESSIONS_PER_USER)
    items = max(_LEAST_ITEMS, round(2000 * (impressions / 100_000) ** 0.6))
    sizes = {kind: max(least * _CATEGORIES, items // 8) for kind, least in MIN_PER_CATEGORY.items()}
    sizes |= {"category": _CATEGORIES, "item": items}
    return draw_world(np.random.default_rng([seed, WORLD]), sizes, ((0, users), (0, users)))


def draw_page_views(world: SimulatedWorld, seed: int, impressions: int) -> PageViews:
    """Draw the page views of all days, which hold exactly `impressions` together."""
    each = np.diff(np.linspace(0, impressions, DAYS + 1).round().astype(np.int64))
    days = [
        _draw_day(world, np.random.default_rng([seed, CHUNK, day]), day, int(number)) for day, number in enumerate(each)
    ]
    pages_before = np.cumsum([0, *(len(day.user) for day in days)])
    entries_before = np.cumsum([0, *(len(day.entry_taxa) for day in days)])
    user = np.concatenate([day.user for day in days])
    return PageViews(
        user=user,
        at_ms=_apart(user, np.concatenate([day.at_ms for day in days])),
        entry_taxa=np.concatenate([day.entry_taxa for day in days]),
        entry_counts=np.concatenate([day.entry_counts for day in days]),
        entry_ends=np.concatenate([day.entry_ends + entries_before[place] for place, day in enumerate(days)]),
        page=np.concatenate([day.page + pages_before[place] for place, day in enumerate(days)]),
        item=np.concatenate([day.item for day in days]),
        taxa=np.concatenate([day.taxa for day in days], axis=1),
        num_tags=np.concatenate([day.num_tags for day in days]),
        placement=np.concatenate([day.placement for day in days]),
        affinity=np.concatenate([day.affinity for day in days]),
    )


def _draw_day(world: SimulatedWorld, rng: np.random.Generator, day: int, impressions: int) -> PageViews:
    period = int(day >= FIRST_LATER_DAY)
    drawn, to_draw = 0, impressions
    while drawn < impressions:  # an item that stands twice on its page is dropped, so more are drawn than are needed
        to_draw += to_draw // 2 + 20
        size = _PAGE_SIZE.draw(1 - rng.random(to_draw))
        size = size[: int(np.searchsorted(np.cumsum(size), to_draw)) + 1]
        user = _present_users(rng, world.num_users, day, len(size))
        columns = draw_impressions(
            rng, world.tables, world.tastes[period][user], world.tables.popularity_by_split[period], size,
            _LIST_SIZE.draw(1 - rng.random(len(size))),
        )  # fmt: skip
        page = np.repeat(np.arange(len(size)), size)
        _, first = np.unique(page * (int(columns.items.max()) + 1) + columns.items, return_index=True)
        drawn = len(first)
    return _first_impressions(columns, page, np.sort(first)[:impressions], user, _visit_times(rng, day, len(size)))


def _first_impressions(
    columns: ImpressionColumns, page: np.ndarray, kept: np.ndarray, user: np.ndarray, at_ms: np.ndarray
) -> PageViews:
    """Keep the impressions `kept`, and the page views up to the last of them."""
    pages = int(page[kept[-1]]) + 1
    entries = int(columns.entry_ends[pages - 1])
    return PageViews(
        user[:pages], at_ms[:pages], columns.entry_taxa[:entries], columns.entry_counts[:entries],
        columns.entry_ends[:pages], page[kept], columns.items[kept], columns.taxa[:, kept],
        columns.num_intentions[kept], columns.positions[kept], columns.affinity[kept],
    )  # fmt: skip


def _present_users(rng: np.random.Generator, users: int, day: int, number: int) -> np.ndarray:
    """Draw users of a day: a window of _PRESENT of them, which moves on; its first users come more often."""
    present = int(_PRESENT * users)
    start = (users - present) * day // (DAYS - 1)
    return start + (present * rng.random(number) ** 1.25).astype(np.int64)


def _visit_times(rng: np.random.Generator, day: int, number: int) -> np.ndarray:
    """Draw the times of a day's page views, most of them in the evening: int64 [C], in milliseconds."""
    share_before = np.concatenate([[0.0], np.cumsum(HOURS) / HOURS.sum()])
    hour = np.interp(rng.random(number), share_before, np.arange(len(HOURS) + 1))
    return START_MS + day * DAY_MS + (hour * 3600 * MS_PER_S).astype(np.int64)


def _apart(user: np.ndarray, at_ms: np.ndarray) -> np.ndarray:
    """Move page views of a user that come within _LEAST_GAP_MS of the one before to that much after it."""
    order = np.lexsort((at_ms, user))
    users = user[order]
    number = np.arange(len(users)) - np.searchsorted(users, users)
    # A running maximum within each user: her times lie above those of the user before.
    floor = at_ms[order] - START_MS - _LEAST_GAP_MS * number + users * _LONGER_THAN_ANY_LOG_MS
    moved = np.maximum.accumulate(floor) - users * _LONGER_THAN_ANY_LOG_MS + _LEAST_GAP_MS * number + START_MS
    result = np.empty_like(at_ms)
    result[order] = moved
    return result
