"""The published figures of Ali-CCP: sizes, cardinalities, and the ids that each field uses.

Nothing here is random; `pipeline.simulate.world` draws from it. The figures are those of the real files:
85.3M impressions in 1.6M contexts of 57.9 impressions and 518 features on average.
"""

# Shapes: N values.

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.features.fields import Catalogue

#: Impressions of the real train and test files together.
REAL_IMPRESSIONS = 42_300_135 + 43_016_840
MEAN_IMPRESSIONS_PER_CONTEXT = 57.9
#: Distinct values over both files at the real size (train alone shows 3.1M items). Categories, shops, brands and
#: intentions are each one universe of three fields: the item's own, the user's list, and the entry that both share.
REAL_CARDINALITY = {"item": 4_000_000, "category": 8_581, "shop": 604_498, "brand": 208_179, "intention": 96_258}
#: Smaller logs hold fewer distinct ids, by Heaps' law: cardinality grows with impressions to this power.
HEAPS_EXPONENT = 0.6
MIN_CATEGORIES = 40
#: The smallest block of a category, so that tiny worlds still have lists to draw.
MIN_PER_CATEGORY = {"item": 8, "shop": 4, "brand": 4, "intention": 4}

#: Profile fields: name → number of values. Sizes do not grow with the log.
PROFILE_CARDINALITY = {
    "user_profile": 98,
    "user_group": 14,
    "user_gender": 3,
    "user_age": 8,
    "user_consumption_1": 4,
    "user_consumption_2": 4,
    "user_is_occupied": 3,
    "user_geography": 5,
}
NUM_POSITIONS = 4
TAXA = ("category", "shop", "brand", "intention")
LIST_FIELDS = ("user_categories", "user_shops", "user_brands", "user_intentions")
ITEM_FIELDS = ("item_category", "item_shop", "item_brand", "item_intention")
CROSS_FIELDS = ("user_item_categories", "user_item_shops", "user_item_brands", "user_item_intentions")


@dataclass(frozen=True)
class Quantiles:
    """A distribution of whole numbers given by P(value ≥ k) at a few k, straight between them in log-log."""

    at_least: tuple[float, ...]  # falling from 1
    value: tuple[float, ...]  # rising

    def draw(self, uniform_N: np.ndarray) -> np.ndarray:
        """Return the int64 [N] values whose survival probabilities are `uniform_N`, in (0, 1]."""
        log_value = np.interp(-np.log(uniform_N), -np.log(self.at_least), np.log(self.value))
        return np.exp(log_value + 1e-9).astype(np.int64)


#: Mean 57.9, 1.2 % singletons; 13 % ≥ 100, 2.7 % ≥ 200, 0.7 % ≥ 300.
IMPRESSIONS_PER_CONTEXT = Quantiles(
    (1, 0.988, 0.93, 0.85, 0.50, 0.130, 0.0268, 0.0067, 1e-4, 1e-6), (1, 2, 10, 20, 50, 100, 200, 300, 600, 900)
)
#: Mean 518, largest 2,706; weighted by impressions the mean is 615 and the 99th percentile about 2,000.
FEATURES_PER_CONTEXT = Quantiles(
    (1, 0.995, 0.98, 0.93, 0.82, 0.575, 0.31, 0.125, 0.044, 0.0085, 7e-4, 1e-5),
    (1, 9, 20, 70, 180, 370, 630, 1000, 1400, 1950, 2500, 2706),
)
#: Share of contexts whose number of features follows their number of impressions; it lifts the joined mean to 615.
SIZE_CORRELATION = 0.25


def size_log_odds(impressions_N: np.ndarray) -> np.ndarray:
    """Return what a context's size adds to the logit of a click: CTR 10 % at 2–9 impressions falls to 3.7 % at ≥ 100."""
    size, ctr = np.array([4, 12, 40, 110]), np.array([0.112, 0.062, 0.0405, 0.037])
    logit = np.log(ctr / (1 - ctr))
    return np.interp(np.log(impressions_N), np.log(size), logit - logit[-1])


def cardinality(kind: str, impressions: int) -> int:
    """Return the number of distinct items, categories, … that a log of `impressions` draws from."""
    share = (impressions / REAL_IMPRESSIONS) ** HEAPS_EXPONENT
    categories = max(MIN_CATEGORIES, round(REAL_CARDINALITY["category"] * share))
    if kind == "category":
        return categories
    return max(MIN_PER_CATEGORY[kind] * categories, round(REAL_CARDINALITY[kind] * share))


@dataclass(frozen=True)
class IdBlock:
    """The ids of one field: value i has id first + (i · stride + shift) mod size, a shuffle without a table."""

    first: int
    size: int
    stride: int
    shift: int

    def ids(self, index_N: np.ndarray) -> np.ndarray:
        """Return the ids (int64 [N]) of the values `index_N`."""
        return self.first + (index_N.astype(np.int64) * self.stride + self.shift) % self.size

    def indices(self, id_N: np.ndarray) -> np.ndarray:
        """Return the values behind ids: the inverse of `ids`."""
        return (id_N.astype(np.int64) - self.first - self.shift) * pow(self.stride, -1, self.size) % self.size


def id_blocks(sizes: dict[str, int]) -> dict[str, IdBlock]:
    """Give each field a block of ids, one after the other as in the real log, so ids never repeat across fields.

    The first blocks are dense from 1 (a direct table serves them); a small field after large ones has a largest id
    far beyond 8 times its size (a hash table must).
    """
    blocks, first = {}, 1
    for name, size in sizes.items():
        stride = max(1, int(size * 0.618))
        while math.gcd(stride, size) != 1:
            stride += 1
        blocks[name] = IdBlock(first, size, stride, size // 3)
        first += size + size // 10
    return blocks


def field_sizes(impressions: int, users: int) -> dict[str, int]:
    """Return field name → number of values, in the order of the real log's id blocks."""
    sizes = {"user_id": users, **PROFILE_CARDINALITY, "item_id": cardinality("item", impressions)}
    for fields in (ITEM_FIELDS, CROSS_FIELDS, LIST_FIELDS):
        sizes.update({name: cardinality(kind, impressions) for kind, name in zip(TAXA, fields, strict=True)})
    return {**sizes, "position": NUM_POSITIONS}


def require_raw_ids(catalogue: Catalogue, names: Sequence[str]) -> list[bytes]:
    """Return the raw ids of the fields `names` as the log has them; raises InputError if the catalogue lacks one."""
    missing = sorted(set(names) - {entry.name for entry in catalogue.fields})
    if missing:
        raise InputError(f"features.fields has no {missing[0]}, which the simulator writes; use features=aliccp.")
    return [catalogue[name].raw_id.encode() for name in names]
