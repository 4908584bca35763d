"""The tables of the simulated shop, as its systems would write them: text ids, lists, gaps, odd names.

impressions   impression_id, timestamp, user_id, page_view_id, item_id, placement, viewed_categories and their weights,
              viewed_brands
actions       timestamp, user_id, item_id, action
users         user_id, gender, age_group, spending_level, city         a user may be missing, or have gaps
items         item_id, category, shop_id, brand, price, tags           an item may be missing, or have gaps
"""

# Shapes: B impressions, C page views, E entries of the users' lists, N values.

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.simulate.shop.actions import Actions
from pipeline.simulate.shop.page_views import PageViews
from pipeline.simulate.world import SimulatedWorld

TIMESTAMP = pa.timestamp("ms", tz="UTC")
_PLACEMENTS = ("home", "search", "cart", "product page")
_GENDERS = ("female", "male", None)
_AGES = ("under 18", "18-24", "25-29", "30-34", "35-44", "45-59", "60+", None)
_CITIES = ("Oslo", "Malmö", "København", "Tromsø", None)
#: ShopNames of brands, with what text formats have to quote.
_BRANDS = ("Nord {}", "Åse & Sønn {}", 'The "Blue" {}', "Lys, mørk {}", "東風 {}")
_WITHOUT_BRAND, _WITHOUT_PRICE = 0.15, 0.02  # shares of the items
_UNKNOWN_USERS, _UNKNOWN_ITEMS = 0.03, 0.01  # shares that the tables lack


class ShopNames:
    """The texts by which the shop's tables call what the world numbers: each an array of texts, taken by number."""

    def __init__(self, world: SimulatedWorld) -> None:
        tables = world.tables
        categories = tables.block_sizes.shape[1]
        starts = tables.block_starts[:3, 0].tolist()
        shops, brands, tags = starts[1] - starts[0], starts[2] - starts[1], len(tables.vectors) - starts[2]
        self.category = _texts("c{:02d}", categories)
        self.shop = _texts("shop-{:04d}", shops)
        self.brand = pa.array([_BRANDS[n % len(_BRANDS)].format(n) for n in range(brands)])
        self.tag = _texts("#{}", tags)
        self.first_shop, self.first_brand, self.first_tag = starts


def impression_ids(views: PageViews) -> pa.Array:
    """Name each impression by its page view and its place there, text [B]."""
    place = views.place_on_page()
    return pa.array(
        [f"pv{page:08d}-{rank:02d}" for page, rank in zip(views.page.tolist(), place.tolist(), strict=True)]
    )


def impressions_table(views: PageViews, names: ShopNames) -> pa.Table:
    """Return one row an impression."""
    page = pa.array(views.page)
    first_brand, first_tag = names.first_brand, names.first_tag
    categories, weights = _viewed(views, views.entry_taxa < len(names.category), names.category, 0)
    brands, _ = _viewed(
        views, (views.entry_taxa >= first_brand) & (views.entry_taxa < first_tag), names.brand, first_brand
    )
    return pa.table(
        {
            "impression_id": impression_ids(views),
            "timestamp": pa.array(views.shown_ms).cast(TIMESTAMP),
            "user_id": _user_ids(views.user).take(page),
            "page_view_id": pa.array([f"pv{number:08d}" for number in range(len(views.user))]).take(page),
            "item_id": _item_ids(views.item),
            "placement": pa.array(_PLACEMENTS).take(pa.array(views.placement)),
            "viewed_categories": categories.take(page),
            "viewed_categories__weight": weights.take(page),
            "viewed_brands": brands.take(page),
        }
    )


def actions_table(actions: Actions) -> pa.Table:
    """Return one row an action."""
    return pa.table(
        {
            "timestamp": pa.array(actions.at_ms).cast(TIMESTAMP),
            "user_id": _user_ids(actions.user),
            "item_id": _item_ids(actions.item),
            "action": pa.array(actions.name),
        }
    )


def users_table(rng: np.random.Generator, world: SimulatedWorld) -> pa.Table:
    """Return one row a user, but for those that the shop knows nothing of."""
    profile = world.profile
    known = np.flatnonzero(rng.random(world.num_users) >= _UNKNOWN_USERS)
    return pa.table(
        {
            "user_id": _user_ids(known),
            "gender": _chosen(_GENDERS, profile["user_gender"][known]),
            "age_group": _chosen(_AGES, profile["user_age"][known]),
            "spending_level": pa.array(profile["user_consumption_1"][known]),
            "city": _chosen(_CITIES, profile["user_geography"][known]),
        }
    )


def items_table(rng: np.random.Generator, world: SimulatedWorld, views: PageViews, names: ShopNames) -> pa.Table:
    """Return one row an item that was shown, but for those that the shop knows nothing of."""
    item, first = np.unique(views.item, return_index=True)
    known = np.flatnonzero(rng.random(len(item)) >= _UNKNOWN_ITEMS)
    item, first = item[known], first[known]
    category, shop, brand, tag = views.taxa[:, first]
    block_start, block_size = world.tables.block_starts[2, category], world.tables.block_sizes[2, category]
    num_tags = views.num_tags[first]
    ends = np.cumsum(num_tags)
    which = np.arange(ends[-1]) - np.repeat(ends - num_tags, num_tags)
    tags = np.repeat(block_start, num_tags) + (np.repeat(tag - block_start, num_tags) + which) % np.repeat(
        block_size, num_tags
    )
    price = np.exp(3.5 - world.taxon_bias[category] + 0.4 * rng.standard_normal(len(item))).round(2)
    return pa.table(
        {
            "item_id": _item_ids(item),
            "category": names.category.take(pa.array(category)),
            "shop_id": names.shop.take(pa.array(shop - names.first_shop)),
            "brand": names.brand.take(pa.array(brand - names.first_brand, mask=rng.random(len(item)) < _WITHOUT_BRAND)),
            "price": pa.array(price, mask=rng.random(len(item)) < _WITHOUT_PRICE),
            "tags": _ragged(ends, names.tag.take(pa.array(tags - names.first_tag))),
        }
    )


def _viewed(views: PageViews, chosen: np.ndarray, texts: pa.Array, first_taxon: int) -> tuple[pa.Array, pa.Array]:
    """Return the entries `chosen` of each page view's lists (texts), and their weights ln(1 + count)."""
    ends = np.concatenate([[0], np.cumsum(chosen)])[views.entry_ends]
    weights = np.log1p(views.entry_counts[chosen]).round(5).astype(np.float32)
    return _ragged(ends, texts.take(pa.array(views.entry_taxa[chosen] - first_taxon))), _ragged(ends, pa.array(weights))


def _ragged(ends: np.ndarray, values: pa.Array) -> pa.Array:
    """Cut `values` into lists that end at `ends`."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), values)


def _user_ids(user_N: np.ndarray) -> pa.Array:
    return pa.array([f"u{user:06d}" for user in user_N.tolist()], pa.string())


def _item_ids(item_N: np.ndarray) -> pa.Array:
    return pa.array([f"sku-{item}" for item in item_N.tolist()], pa.string())


def _texts(form: str, number: int) -> pa.Array:
    return pa.array([form.format(place) for place in range(number)], pa.string())


def _chosen(values: tuple[Any, ...], place_N: np.ndarray) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(place_N))
