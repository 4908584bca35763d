"""One chunk of a simulated log: contexts, what each user did before, and which items she is shown.

Each chunk has its own stream of random numbers, (seed, split, number of the chunk). It is therefore the same in any
process and any order of chunks.
"""

# Shapes: B impressions, C contexts, D dimensions of a taste, E entries of the users' lists, G categories,
# I intentions of an item, P profile fields, T taxa (categories, shops, brands and intentions in one index).

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.kernels.hashing import GOLDEN, mix
from pipeline.kernels.jit import nb
from pipeline.simulate.published_figures import (
    FEATURES_PER_CONTEXT,
    IMPRESSIONS_PER_CONTEXT,
    PROFILE_CARDINALITY,
    SIZE_CORRELATION,
)
from pipeline.simulate.world import Scores, SimulatedWorld

CHUNK_IMPRESSIONS = 20_000
MAX_INTENTIONS = 20
MAX_COUNT = 4095  # of one entry of a list
#: How sharply the lists follow the taste: P(category | user) ~ popularity · exp(sharpness · taste · category).
SHARPNESS = 1.5
#: Share of impressions drawn from what the user likes; the others are drawn by popularity.
SHOWN_BY_TASTE = 0.5
#: Share of events that name a category alone; the others name a shop, a brand and an intention too.
CATEGORY_ONLY = 0.5
#: Draws after which a line stays shorter than it was meant to be, per feature (small worlds run out of new ids).
MAX_EVENTS_PER_FEATURE = 20
#: The single-valued fields that a line carries, as bits; most lines carry all of them.
ITEM, CATEGORY, SHOP, BRAND, INTENTION, POSITION_BIT, CROSS = (1 << bit for bit in range(7))
EVERY_FIELD = 127


class ImpressionColumns(NamedTuple):
    """B impressions and the E list entries of their C contexts, as the kernel writes them."""

    entry_taxa: np.ndarray  # int32 [E], in the order of the user's events
    entry_counts: np.ndarray  # int32 [E]
    entry_ends: np.ndarray  # int64 [C]: context c owns the entries [end[c - 1], end[c])
    items: np.ndarray  # int32 [B]
    taxa: np.ndarray  # int32 [4, B]: category, shop, brand, first intention
    num_intentions: np.ndarray  # int64 [B]; the others follow the first within its block
    shared_counts: np.ndarray  # int32 [3, B]: how often the user's list has the category, shop, brand; 0 = not in it
    shared_intentions: np.ndarray  # int32 [B, I]: the same for each intention
    positions: np.ndarray  # int8 [B]
    present_fields: np.ndarray  # uint8 [B]: bits ITEM … CROSS
    affinity: np.ndarray  # float64 [B]: taste · item vector


@dataclass(frozen=True)
class DrawnImpressions:
    """Some contexts with all their impressions, without labels."""

    users: np.ndarray  # [C]: row of the world's user tables
    has_user_id: np.ndarray  # bool [C]: the line carries field 101
    has_profile: np.ndarray  # bool [P, C]: the line carries the profile field
    sizes: np.ndarray  # [C]: impressions
    context_of: np.ndarray  # [B]: the context of each impression
    columns: ImpressionColumns

    @property
    def scores(self) -> Scores:
        """The inputs of the probabilities."""
        return Scores(
            affinity=self.columns.affinity,
            user=self.users[self.context_of],
            taxa=self.columns.taxa,
            position=self.columns.positions,
            context_size=self.sizes[self.context_of],
        )


def draw_chunk(world: SimulatedWorld, rng: np.random.Generator, split: int, impressions: int) -> DrawnImpressions:
    """Draw contexts that hold exactly `impressions` together; the last is cut to fit."""
    uniform = 1 - rng.random(impressions)  # (0, 1]; more contexts than can be needed
    sizes = IMPRESSIONS_PER_CONTEXT.draw(uniform)
    num_contexts = int(np.searchsorted(np.cumsum(sizes), impressions)) + 1
    sizes, uniform = sizes[:num_contexts].copy(), uniform[:num_contexts]
    sizes[-1] -= sizes.sum() - impressions
    follows = rng.random(num_contexts) < SIZE_CORRELATION
    num_features = FEATURES_PER_CONTEXT.draw(np.where(follows, uniform, 1 - rng.random(num_contexts)))
    start, stop = world.user_windows[split]
    users = start + ((stop - start) * rng.random(num_contexts) ** 1.25).astype(np.int64)
    has_user_id = rng.random(num_contexts) >= np.where(sizes >= 200, 0.14, 0.05)
    has_profile = _draw_profile_fields(rng, num_features - has_user_id)
    list_features = num_features - has_user_id - has_profile.sum(axis=0)
    tastes = world.tastes[split][users]
    columns = draw_impressions(rng, world.tables, tastes, world.tables.popularity_by_split[split], sizes, list_features)
    context_of = np.repeat(np.arange(num_contexts), sizes)
    return DrawnImpressions(users, has_user_id, has_profile, sizes, context_of, columns)


def _draw_profile_fields(rng: np.random.Generator, room: np.ndarray) -> np.ndarray:
    """Draw which profile fields each line carries: bool [P, C].

    Some users have none, and a line with `room` ([C]) for few features holds few.
    """
    num_fields, contexts = len(PROFILE_CARDINALITY), len(room)
    present = (rng.random((num_fields, contexts)) >= 0.02) & (rng.random(contexts) >= 0.03)
    return present & (np.cumsum(present, axis=0) <= room)


@nb.njit(cache=True)
def draw_impressions(rng, tables, tastes, popularity, sizes, num_features):  # type: ignore[no-untyped-def]
    """Draw the events of each context until its lists hold `num_features` entries, then its impressions."""
    impressions, contexts, categories = sizes.sum(), len(sizes), len(popularity)
    columns = ImpressionColumns(
        np.empty(num_features.sum() + 4 * contexts, np.int32),
        np.empty(num_features.sum() + 4 * contexts, np.int32),
        np.empty(contexts, np.int64),
        np.empty(impressions, np.int32),
        np.empty((4, impressions), np.int32),
        np.empty(impressions, np.int64),
        np.empty((3, impressions), np.int32),
        np.empty((impressions, MAX_INTENTIONS), np.int32),
        np.empty(impressions, np.int8),
        np.empty(impressions, np.uint8),
        np.empty(impressions, np.float64),
    )
    last_entries = np.full(len(tables.vectors), -1, np.int64)  # [T]: last entry that holds the taxon, in any context
    by_popularity = np.cumsum(popularity)
    by_liking = np.empty(categories, np.float64)
    entry = impression = 0
    for context in range(contexts):
        taste = tastes[context]
        _accumulate_liking(tables, taste, popularity, by_liking)
        begin = entry
        entry = _draw_events(rng, tables, taste, by_liking, num_features[context], last_entries, columns, begin)
        columns.entry_ends[context] = entry
        for _ in range(sizes[context]):
            cumulative = by_liking if rng.random() < SHOWN_BY_TASTE else by_popularity
            category = _search(cumulative, rng.random() * cumulative[-1])
            _impression(rng, tables, taste, category, last_entries, columns, begin, impression)
            impression += 1
    return columns


@nb.njit(cache=True)
def _accumulate_liking(tables, taste, popularity, by_liking):  # type: ignore[no-untyped-def]
    """Write cumulative popularity · exp(sharpness · taste · category) over the categories into `by_liking`."""
    total = 0.0
    for category in range(len(popularity)):
        affinity = _dot(taste, tables.vectors[category])
        total += popularity[category] * np.exp(SHARPNESS * affinity)
        by_liking[category] = total


@nb.njit(cache=True)
def _draw_events(rng, tables, taste, by_liking, features, last_entries, columns, begin):  # type: ignore[no-untyped-def]
    """Append what the user did until her lists hold `features` entries; an event may count in all four lists."""
    entry, end = begin, begin + features
    entry_taxa, entry_counts = columns.entry_taxa, columns.entry_counts
    for _ in range(MAX_EVENTS_PER_FEATURE * features):
        category = _search(by_liking, rng.random() * by_liking[-1])
        entry = _count_taxon(category, last_entries, entry_taxa, entry_counts, begin, entry)
        if entry >= end:
            return entry
        if rng.random() < CATEGORY_ONLY:
            continue
        for kind in range(3):
            first, size = tables.block_starts[kind, category], tables.block_sizes[kind, category]
            # Of two candidates the one nearer to her taste is the likelier, so the lists show own parts too.
            taxon, other = first + _zipf(rng.random() ** 1.5, size), first + _zipf(rng.random() ** 1.5, size)
            advantage = _dot(taste, tables.vectors[other]) - _dot(taste, tables.vectors[taxon])
            if rng.random() * (1.0 + np.exp(-4.0 * advantage)) < 1.0:
                taxon = other
            entry = _count_taxon(taxon, last_entries, entry_taxa, entry_counts, begin, entry)
            if entry >= end:
                return entry
    return entry


@nb.njit(cache=True)
def _count_taxon(taxon, last_entries, entry_taxa, entry_counts, begin, entry):  # type: ignore[no-untyped-def]
    """Count `taxon` once more in the lists that began at `begin`; return the next free entry."""
    if last_entries[taxon] >= begin:
        earlier = last_entries[taxon]
        entry_counts[earlier] = min(entry_counts[earlier] + 1, MAX_COUNT)
        return entry
    last_entries[taxon] = entry
    entry_taxa[entry] = taxon
    entry_counts[entry] = 1
    return entry + 1


@nb.njit(cache=True)
def _impression(rng, tables, taste, category, last_entries, columns, begin, row):  # type: ignore[no-untyped-def]
    """Draw an item of `category`; look up its shop, brand and intentions, and which of them the user's lists hold."""
    item = tables.block_starts[3, category] + _zipf(rng.random(), tables.block_sizes[3, category])
    columns.items[row] = item
    columns.taxa[0, row] = category
    affinity = _dot(taste, tables.vectors[category])
    for kind in range(3):  # an item's shop, brand and intentions are fixed by its number
        first, size = tables.block_starts[kind, category], tables.block_sizes[kind, category]
        taxon = first + _zipf(_fixed(tables.salt, item, kind) ** 1.5, size)
        columns.taxa[1 + kind, row] = taxon
        affinity += _dot(taste, tables.vectors[taxon])
    columns.affinity[row] = affinity
    for kind in range(3):
        columns.shared_counts[kind, row] = _occurrences(
            columns.taxa[kind, row], last_entries, columns.entry_counts, begin
        )
    first, size = tables.block_starts[2, category], tables.block_sizes[2, category]
    number = 1 + np.int64(-np.log(1.0 - _fixed(tables.salt, item, 3)) * 7.0)
    number = min(number, size, MAX_INTENTIONS)
    columns.num_intentions[row] = number
    for which in range(number):
        taxon = first + (columns.taxa[3, row] - first + which) % size
        columns.shared_intentions[row, which] = _occurrences(taxon, last_entries, columns.entry_counts, begin)
    uniform = rng.random()
    columns.positions[row] = 0 if uniform < 0.4 else 1 if uniform < 0.7 else 2 if uniform < 0.9 else 3
    columns.present_fields[row] = _draw_present_fields(rng.random())


@nb.njit(cache=True)
def _draw_present_fields(uniform):  # type: ignore[no-untyped-def]
    """Choose the fields of a line: about one line in a hundred lacks one, one in ten thousand has the item alone."""
    if uniform < 0.0001:
        return np.uint8(ITEM)
    if uniform < 0.01:
        return np.uint8(EVERY_FIELD - (1 << np.int64(uniform * 600)))  # a bit from ITEM to POSITION_BIT
    return np.uint8(EVERY_FIELD)


@nb.njit(cache=True)
def _occurrences(taxon, last_entries, entry_counts, begin):  # type: ignore[no-untyped-def]
    """Return how often the lists that began at `begin` count `taxon`."""
    return entry_counts[last_entries[taxon]] if last_entries[taxon] >= begin else 0


@nb.njit(cache=True)
def _dot(taste, vector):  # type: ignore[no-untyped-def]
    """Return taste · vector, scaled so that its variance is that of one dimension."""
    total = 0.0
    for d in range(len(taste)):
        total += taste[d] * vector[d]
    return total / np.sqrt(len(taste))


@nb.njit(cache=True)
def _search(cumulative, target):  # type: ignore[no-untyped-def]
    """Find the first position whose cumulative weight exceeds `target`."""
    low, high = 0, len(cumulative) - 1
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] <= target:
            low = middle + 1
        else:
            high = middle
    return low


@nb.njit(cache=True)
def _zipf(uniform, size):  # type: ignore[no-untyped-def]
    """Return a rank in [0, size), with probability ∝ log(1 + 1 / (rank + 1)): Zipf's law with exponent 1."""
    return min(np.int64(np.exp(uniform * np.log(size + 1.0))) - 1, size - 1)


@nb.njit(cache=True)
def _fixed(salt, item, attribute):  # type: ignore[no-untyped-def]
    """Return a number in [0, 1) fixed by item and attribute."""
    counter = salt + (np.uint64(item) * np.uint64(4) + np.uint64(attribute)) * np.uint64(GOLDEN)
    return np.float64(mix(counter) >> np.uint64(11)) * 2.0**-53
