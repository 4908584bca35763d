"""The latent-factor world behind a simulated log: who likes what, and the true probabilities that follow.

Each user has a taste vector and each category a vector of the same few dimensions; a shop, a brand or an intention is
its category's vector plus a small part of its own. A user's lists are draws from softmax(taste · category), so the log
reveals the taste; an impression carries the entries that its item shares with the user's lists, so the log reveals the
interaction too. CVR depends on the interaction that also drives the click: clicked impressions are a biased sample.
"""

# Shapes: B impressions, D dimensions of a taste, G categories, U users, T taxa.
# Categories, shops, brands and intentions have one index in common, that of the taxa.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.simulate.published_figures import (
    MEAN_IMPRESSIONS_PER_CONTEXT,
    MIN_PER_CATEGORY,
    PROFILE_CARDINALITY,
    TAXA,
    cardinality,
    size_log_odds,
)

TASTE_WIDTH = 6
#: Standard deviation, per dimension, of what a shop, brand or intention adds to its category's vector of 1.
OWN_PART = 0.22
#: Streams of random numbers: SeedSequence((seed, stream, …)), so that no part depends on how much another drew.
WORLD, PILOT, CHUNK = 0, 1, 2
#: How much of a taste is left in the test period, and the share of its users that train has not seen.
TASTE_CORRELATION = 0.95
NEW_USERS = 0.3
#: Standard deviation of the interaction in the logit of a click: about two thirds of the logit's variance.
INTERACTION_SCALE = 0.85
#: The same for what categories, shops and brands have of their own (main effects).
BIAS_SCALE = {"category": 0.25, "shop": 0.15, "brand": 0.1, "intention": 0.0}
POSITION_LOG_ODDS = np.array([0.35, 0.05, -0.2, -0.45])
USER_SCALE = 0.2


class Tables(NamedTuple):
    """The tables that the drawing kernel reads (a NamedTuple, because numba takes it as it is)."""

    vectors: np.ndarray  # float32 [T, D]; a category's vector, or what a shop, brand, intention adds to it
    block_starts: np.ndarray  # int64 [4, G]; where the category's block of shops, brands, intentions, items begins
    block_sizes: np.ndarray  # int64 [4, G]; and how long it is
    popularity_by_split: np.ndarray  # float64 [2, G], adds to 1 for each split
    salt: np.uint64  # keys the fixed attributes of items


@dataclass(frozen=True)
class SimulatedWorld:
    """The part of the simulation that stays fixed while chunks are drawn."""

    tables: Tables
    tastes: np.ndarray  # float32 [2, U, D]: in train, in test
    profile: dict[str, np.ndarray]  # profile field → int64 [U]
    user_effects: np.ndarray  # float64 [U], adds to the logit of a click
    taxon_bias: np.ndarray  # float64 [T], likewise
    buyer_effects: np.ndarray  # float64 [U], adds to the logit of a conversion
    user_windows: tuple[tuple[int, int], ...]  # the users active in each split

    @property
    def num_users(self) -> int:
        """U, the users of both splits together."""
        return len(self.user_effects)


def build_world(seed: int, impressions: int, train_share: float) -> SimulatedWorld:
    """Draw the world of a log of `impressions`, a share `train_share` of them in train."""
    sizes = {kind: cardinality(kind, impressions) for kind in (*TAXA, "item")}
    return draw_world(np.random.default_rng([seed, WORLD]), sizes, _user_windows(impressions, train_share))


def draw_world(
    rng: np.random.Generator, sizes: Mapping[str, int], user_windows: tuple[tuple[int, int], ...]
) -> SimulatedWorld:
    """Draw a world with `sizes` of each of TAXA and of "item", and the users [start, stop) of train and of test."""
    users = max(stop for _, stop in user_windows)
    tastes = rng.standard_normal((users, TASTE_WIDTH))
    profile = _profiles(rng, tastes)
    drift = rng.standard_normal((users, TASTE_WIDTH))
    later_tastes = TASTE_CORRELATION * tastes + np.sqrt(1 - TASTE_CORRELATION**2) * drift
    tables = _tables(rng, sizes)
    taxon_bias = np.concatenate(
        [BIAS_SCALE[kind] * rng.standard_normal(sizes[kind]) for kind in TAXA], dtype=np.float64
    )
    age, gender = profile["user_age"], profile["user_gender"]
    by_group = rng.standard_normal((PROFILE_CARDINALITY["user_gender"], PROFILE_CARDINALITY["user_age"]))
    return SimulatedWorld(
        tables=tables,
        tastes=np.stack([tastes, later_tastes]).astype(np.float32),
        profile=profile,
        user_effects=USER_SCALE * by_group[gender, age],
        taxon_bias=taxon_bias,
        buyer_effects=0.4 * (profile["user_consumption_1"] - 1.5) + 0.3 * rng.standard_normal(users),
        user_windows=user_windows,
    )


def _user_windows(impressions: int, train_share: float) -> tuple[tuple[int, int], ...]:
    """Choose the users [start, stop) of train and of test: 2 contexts a user, and most of test's users seen before."""
    half = [share * impressions / MEAN_IMPRESSIONS_PER_CONTEXT for share in (train_share, 1 - train_share)]
    train, test = (max(4, round(0.5 * contexts)) for contexts in half)
    start = round(NEW_USERS * train)
    return (0, train), (start, start + test)


def _profiles(rng: np.random.Generator, tastes: np.ndarray) -> dict[str, np.ndarray]:
    """Draw demographics that lean on the tastes ([U, D]): each field int64 [U]."""
    users = len(tastes)

    def leaning(dimension: int, values: int) -> np.ndarray:
        noisy = 0.7 * tastes[:, dimension] + 0.7 * rng.standard_normal(users)
        return np.clip(np.floor((noisy + 2) / 4 * values), 0, values - 1).astype(np.int64)

    gender, age, region = leaning(0, 2), leaning(1, 7), rng.integers(0, 7, users)
    unknown = rng.random(users) < 0.02
    group = gender * 7 + age
    return {
        "user_profile": group * 7 + region,
        "user_group": group,
        "user_gender": np.where(unknown, 2, gender),
        "user_age": np.where(unknown, 7, age),
        "user_consumption_1": leaning(2, 4),
        "user_consumption_2": leaning(3, 4),
        "user_is_occupied": leaning(4, 3),
        "user_geography": rng.integers(0, 5, users),
    }


def _tables(rng: np.random.Generator, count: Mapping[str, int]) -> Tables:
    """Draw categories of Zipf popularity, and below each a block of shops, brands, intentions and items."""
    num_categories = count["category"]
    # Steep enough that larger logs add rare categories and leave the popular ones about as popular.
    popularity = (np.arange(num_categories) + 40.0) ** -1.5
    popularity /= popularity.sum()
    later_popularity = popularity * np.exp(0.1 * rng.standard_normal(num_categories))
    category_vectors = rng.standard_normal((num_categories, TASTE_WIDTH))
    category_vectors -= popularity @ category_vectors  # centred: taste · vector is interaction without a main effect
    own = [OWN_PART * rng.standard_normal((count[kind], TASTE_WIDTH), dtype=np.float32) for kind in TAXA[1:]]
    block_sizes = [_block_sizes(count[kind], popularity, MIN_PER_CATEGORY[kind]) for kind in (*TAXA[1:], "item")]
    starts = [*np.cumsum([num_categories, count["shop"], count["brand"]]).tolist(), 0]  # items count from 0
    block_starts = [start + np.cumsum(block) - block for start, block in zip(starts, block_sizes, strict=True)]
    return Tables(
        vectors=np.concatenate([category_vectors.astype(np.float32), *own]),
        block_starts=np.stack(block_starts),
        block_sizes=np.stack(block_sizes),
        popularity_by_split=np.stack([popularity, later_popularity / later_popularity.sum()]),
        salt=rng.integers(0, 2**63, dtype=np.uint64),
    )


def _block_sizes(total: int, popularity: np.ndarray, smallest: int) -> np.ndarray:
    """Divide `total` over the categories: int64 [G]. Popular ones get more, and none less than `smallest`."""
    weights = popularity**0.7
    sizes = smallest + np.floor((total - smallest * len(weights)) * weights / weights.sum()).astype(np.int64)
    sizes[: total - sizes.sum()] += 1
    return sizes


class Scores(NamedTuple):
    """The inputs of the probabilities of B impressions, each [B] unless it says otherwise."""

    affinity: np.ndarray  # taste · item vector, unscaled: the interaction
    user: np.ndarray  # row of the world's user tables
    taxa: np.ndarray  # int64 [4, B]: category, shop, brand, first intention
    position: np.ndarray
    context_size: np.ndarray  # impressions of its context


def click_parts(world: SimulatedWorld, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return (unscaled interaction, everything else) of the logit of a click, each float64 [B]."""
    main = world.user_effects[scores.user] + world.taxon_bias[scores.taxa].sum(axis=0)
    return scores.affinity, main + POSITION_LOG_ODDS[scores.position] + size_log_odds(scores.context_size)


def buying_score(world: SimulatedWorld, scores: Scores, interaction: np.ndarray) -> np.ndarray:
    """Return what moves the logits of daction and conversion after a click, the click's own interaction included."""
    return 0.6 * interaction + world.buyer_effects[scores.user] - 1.5 * world.taxon_bias[scores.taxa[0]]
