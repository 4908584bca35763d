"""One chunk of a simulated log: contexts, what each user did before, and which items she is shown.

A chunk is drawn from its own stream of random numbers, (seed, split, number of the chunk), so it is the same whoever
draws it and whatever was drawn before.
"""

# Shapes: C contexts, B impressions, E entries of the users' lists, G categories, D taste, L intentions of an item.

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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
#: Which of the fields of arity one a line carries, as bits; lines with all of them are the rule.
ITEM, CATEGORY, SHOP, BRAND, INTENTION, POSITION_BIT, CROSS = (1 << bit for bit in range(7))
EVERY_FIELD = 127


class Shown(NamedTuple):
    """B impressions and the E list entries of their C contexts, as the kernel writes them."""

    entry_taxon_E: np.ndarray  # int32, in the order of the user's events
    entry_count_E: np.ndarray  # int32
    entry_end_C: np.ndarray  # int64: context c owns the entries [end[c - 1], end[c])
    item_B: np.ndarray  # int32
    taxon_4B: np.ndarray  # int32: category, shop, brand, first intention
    num_intentions_B: np.ndarray  # int64; the others follow the first within its block
    shared_3B: np.ndarray  # int32: how often the user's list has the category, shop, brand; 0 = not in it
    shared_intention_BL: np.ndarray  # int32: the same for each intention
    position_B: np.ndarray  # int8
    present_B: np.ndarray  # uint8: bits ITEM … CROSS
    affinity_B: np.ndarray  # float64: taste · item vector


@dataclass(frozen=True)
class DrawnImpressions:
    """Some contexts and all their impressions, not yet labelled."""

    user_C: np.ndarray  # row of the world's user tables
    user_known_C: np.ndarray  # bool: the line carries field 101
    profile_PC: np.ndarray  # bool [P, C]: the line carries the profile field
    size_C: np.ndarray  # impressions
    context_B: np.ndarray  # context of each impression
    shown: Shown

    @property
    def scores(self) -> Scores:
        """What the probabilities are made of."""
        return Scores(
            affinity=self.shown.affinity_B,
            user=self.user_C[self.context_B],
            taxa_4=self.shown.taxon_4B,
            position=self.shown.position_B,
            context_size=self.size_C[self.context_B],
        )


def draw_chunk(world: SimulatedWorld, rng: np.random.Generator, split: int, impressions: int) -> DrawnImpressions:
    """Draw contexts until they hold exactly `impressions`; the last is cut to fit."""
    uniform_C = 1 - rng.random(impressions)  # (0, 1]; more contexts than can be needed
    size_C = IMPRESSIONS_PER_CONTEXT.draw(uniform_C)
    num_contexts = int(np.searchsorted(np.cumsum(size_C), impressions)) + 1
    size_C, uniform_C = size_C[:num_contexts].copy(), uniform_C[:num_contexts]
    size_C[-1] -= size_C.sum() - impressions
    follows_C = rng.random(num_contexts) < SIZE_CORRELATION
    features_C = FEATURES_PER_CONTEXT.draw(np.where(follows_C, uniform_C, 1 - rng.random(num_contexts)))
    start, stop = world.window_S[split]
    user_C = start + ((stop - start) * rng.random(num_contexts) ** 1.25).astype(np.int64)
    user_known_C = rng.random(num_contexts) >= np.where(size_C >= 200, 0.14, 0.05)
    profile_PC = _profile_present(rng, features_C - user_known_C)
    own_C = features_C - user_known_C - profile_PC.sum(axis=0)
    taste_CD = world.tastes[split][user_C]
    shown = _draw_impressions(rng, world.tables, taste_CD, world.tables.popularity_SG[split], size_C, own_C)
    context_B = np.repeat(np.arange(num_contexts), size_C)
    return DrawnImpressions(user_C, user_known_C, profile_PC, size_C, context_B, shown)


def _profile_present(rng: np.random.Generator, room_C: np.ndarray) -> np.ndarray:
    """Which profile fields the line carries, bool [P, C]: some users have none, and a short line holds few."""
    num_fields, contexts = len(PROFILE_CARDINALITY), len(room_C)
    present_PC = (rng.random((num_fields, contexts)) >= 0.02) & (rng.random(contexts) >= 0.03)
    return present_PC & (np.cumsum(present_PC, axis=0) <= room_C)


@nb.njit(cache=True)
def _draw_impressions(rng, tables, taste_CD, popularity_G, size_C, features_C):  # type: ignore[no-untyped-def]
    """Events of each context until its lists hold `features_C` entries, then its impressions."""
    impressions, contexts, categories = size_C.sum(), len(size_C), len(popularity_G)
    shown = Shown(
        np.empty(features_C.sum() + 4 * contexts, np.int32),
        np.empty(features_C.sum() + 4 * contexts, np.int32),
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
    seen_T = np.full(len(tables.vector_TD), -1, np.int64)  # last entry that holds the taxon, in any context
    popular_G = np.cumsum(popularity_G)
    liked_G = np.empty(categories, np.float64)
    entry = impression = 0
    for context in range(contexts):
        taste_D = taste_CD[context]
        _liking(tables, taste_D, popularity_G, liked_G)
        begin = entry
        entry = _draw_events(rng, tables, taste_D, liked_G, features_C[context], seen_T, shown, begin)
        shown.entry_end_C[context] = entry
        for _ in range(size_C[context]):
            chosen_G = liked_G if rng.random() < SHOWN_BY_TASTE else popular_G
            category = _search(chosen_G, rng.random() * chosen_G[-1])
            _impression(rng, tables, taste_D, category, seen_T, shown, begin, impression)
            impression += 1
    return shown


@nb.njit(cache=True)
def _liking(tables, taste_D, popularity_G, liked_G):  # type: ignore[no-untyped-def]
    """Cumulative popularity · exp(sharpness · taste · category) over the categories, into `liked_G`."""
    total = 0.0
    for category in range(len(popularity_G)):
        affinity = _dot(taste_D, tables.vector_TD[category])
        total += popularity_G[category] * np.exp(SHARPNESS * affinity)
        liked_G[category] = total


@nb.njit(cache=True)
def _draw_events(rng, tables, taste_D, liked_G, features, seen_T, shown, begin):  # type: ignore[no-untyped-def]
    """Append what the user did until her lists hold `features` entries; an event may count in all four lists."""
    entry, end = begin, begin + features
    taxon_E, count_E = shown.entry_taxon_E, shown.entry_count_E
    for _ in range(MAX_EVENTS_PER_FEATURE * features):
        category = _search(liked_G, rng.random() * liked_G[-1])
        entry = _count_taxon(category, seen_T, taxon_E, count_E, begin, entry)
        if entry >= end:
            return entry
        if rng.random() < CATEGORY_ONLY:
            continue
        for kind in range(3):
            first, size = tables.first_4G[kind, category], tables.size_4G[kind, category]
            # Of two candidates the one nearer to her taste is the likelier, so the lists show own parts too.
            taxon, other = first + _zipf(rng.random() ** 1.5, size), first + _zipf(rng.random() ** 1.5, size)
            advantage = _dot(taste_D, tables.vector_TD[other]) - _dot(taste_D, tables.vector_TD[taxon])
            if rng.random() * (1.0 + np.exp(-4.0 * advantage)) < 1.0:
                taxon = other
            entry = _count_taxon(taxon, seen_T, taxon_E, count_E, begin, entry)
            if entry >= end:
                return entry
    return entry


@nb.njit(cache=True)
def _count_taxon(taxon, seen_T, taxon_E, count_E, begin, entry):  # type: ignore[no-untyped-def]
    """Count `taxon` once more in the lists that began at `begin`; gives the next free entry."""
    if seen_T[taxon] >= begin:
        held = seen_T[taxon]
        count_E[held] = min(count_E[held] + 1, MAX_COUNT)
        return entry
    seen_T[taxon] = entry
    taxon_E[entry] = taxon
    count_E[entry] = 1
    return entry + 1


@nb.njit(cache=True)
def _impression(rng, tables, taste_D, category, seen_T, shown, begin, row):  # type: ignore[no-untyped-def]
    """Choose an item of `category`, look up what belongs to it, and what of that the user's lists hold."""
    item = tables.first_4G[3, category] + _zipf(rng.random(), tables.size_4G[3, category])
    shown.item_B[row] = item
    shown.taxon_4B[0, row] = category
    affinity = _dot(taste_D, tables.vector_TD[category])
    for kind in range(3):  # an item's shop, brand and intentions are fixed by its number
        first, size = tables.first_4G[kind, category], tables.size_4G[kind, category]
        taxon = first + _zipf(_fixed(tables.salt, item, kind) ** 1.5, size)
        shown.taxon_4B[1 + kind, row] = taxon
        affinity += _dot(taste_D, tables.vector_TD[taxon])
    shown.affinity_B[row] = affinity
    for kind in range(3):
        shown.shared_3B[kind, row] = _occurrences(shown.taxon_4B[kind, row], seen_T, shown.entry_count_E, begin)
    first, size = tables.first_4G[2, category], tables.size_4G[2, category]
    number = 1 + np.int64(-np.log(1.0 - _fixed(tables.salt, item, 3)) * 7.0)
    number = min(number, size, MAX_INTENTIONS)
    shown.num_intentions_B[row] = number
    for which in range(number):
        taxon = first + (shown.taxon_4B[3, row] - first + which) % size
        shown.shared_intention_BL[row, which] = _occurrences(taxon, seen_T, shown.entry_count_E, begin)
    uniform = rng.random()
    shown.position_B[row] = 0 if uniform < 0.4 else 1 if uniform < 0.7 else 2 if uniform < 0.9 else 3
    shown.present_B[row] = _present(rng.random())


@nb.njit(cache=True)
def _present(uniform):  # type: ignore[no-untyped-def]
    """Which fields the line carries: about one line in a hundred lacks one, one in ten thousand has the item alone."""
    if uniform < 0.0001:
        return np.uint8(ITEM)
    if uniform < 0.01:
        return np.uint8(EVERY_FIELD - (1 << np.int64(uniform * 600)))  # a bit from ITEM to POSITION_BIT
    return np.uint8(EVERY_FIELD)


@nb.njit(cache=True)
def _occurrences(taxon, seen_T, count_E, begin):  # type: ignore[no-untyped-def]
    """Count how often the lists that began at `begin` count `taxon`."""
    return count_E[seen_T[taxon]] if seen_T[taxon] >= begin else 0


@nb.njit(cache=True)
def _dot(taste_D, vector_D):  # type: ignore[no-untyped-def]
    """Taste · vector, scaled so that its variance is that of one dimension."""
    total = 0.0
    for d in range(len(taste_D)):
        total += taste_D[d] * vector_D[d]
    return total / np.sqrt(len(taste_D))


@nb.njit(cache=True)
def _search(cumulative_G, target):  # type: ignore[no-untyped-def]
    """The first position whose cumulative weight exceeds `target`."""
    low, high = 0, len(cumulative_G) - 1
    while low < high:
        middle = (low + high) // 2
        if cumulative_G[middle] <= target:
            low = middle + 1
        else:
            high = middle
    return low


@nb.njit(cache=True)
def _zipf(uniform, size):  # type: ignore[no-untyped-def]
    """A rank in [0, size) with probability log(1 + 1 / (rank + 1)): Zipf's law with exponent 1, in closed form."""
    return min(np.int64(np.exp(uniform * np.log(size + 1.0))) - 1, size - 1)


@nb.njit(cache=True)
def _fixed(salt, item, attribute):  # type: ignore[no-untyped-def]
    """A number in [0, 1) fixed by item and attribute: splitmix64's finaliser over a counter."""
    x = salt + (np.uint64(item) * np.uint64(4) + np.uint64(attribute)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.float64((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
