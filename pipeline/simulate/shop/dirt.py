"""Dirty rows of the simulated shop: impressions that jobs.preprocess quarantines, and actions that it passes over.

They are rows of their own, of users whom the shop does not have, so that no good row is lost by them. Only a duplicate
is a copy of a good impression.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from pipeline.config.events import CLICK, MS_PER_S
from pipeline.simulate.dirt import LEAST_PER_REASON

_DUPLICATE_DELAY_MS = 200
_WILD_CLOCK_MS = 2_145_916_800 * MS_PER_S  # 2038
DIRTY_IMPRESSION_SCHEMA = pa.schema([("table", pa.string()), ("id", pa.string()), ("reason", pa.string())])


def _nulls(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: _replaced(rows, name, pa.nulls(len(rows), rows.schema.field(name).type))


def _with_weights(broken: Callable[[list[float]], list[float]]) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        name = "viewed_categories__weight"
        weights = [broken(weights) for weights in rows[name].to_pylist()]
        return _replaced(rows, name, pa.array(weights, rows.schema.field(name).type))

    return change


#: Reason → the ways to make an impression that is rejected for it; they take turns.
DIRTY_IMPRESSIONS: Mapping[str, tuple[Callable[[pa.Table], pa.Table], ...]] = {
    "malformed_line": (_nulls("user_id"), _nulls("item_id"), _nulls("timestamp")),
    "bad_context_key": (_nulls("page_view_id"),),
    "bad_feature": (_with_weights(lambda weights: [*weights, 1.0]), _with_weights(lambda weights: [float("nan")])),
}


def _with_wild_clock(rows: pa.Table) -> pa.Table:
    times = pa.array([_WILD_CLOCK_MS] * len(rows), rows.schema.field("timestamp").type)
    # An action that makes no label is counted as such, whatever its time.
    clicks = _replaced(rows, "action", pa.array([CLICK] * len(rows), pa.string()))
    return _replaced(clicks, "timestamp", times)


#: What the audit calls an action that it passes over → the ways to make one.
DIRTY_ACTIONS: Mapping[str, tuple[Callable[[pa.Table], pa.Table], ...]] = {
    "malformed": (_nulls("user_id"), _nulls("action"), _nulls("timestamp")),
    "after_end": (_with_wild_clock,),
}


def _dirty_rows_each(share: float, rows: int, reasons: int) -> int:
    """Choose how many rows of each of `reasons` kinds to plant among `rows` good ones: at least two, or none."""
    return max(LEAST_PER_REASON, round(share * rows / reasons)) if share > 0 else 0


def dirty_impressions(rng: np.random.Generator, good: pa.Table, share: float) -> tuple[pa.Table, list[dict[str, str]]]:
    """Return dirty rows to stand among the impressions `good`, and what is wrong with each (DIRTY_IMPRESSION_SCHEMA)."""
    each = _dirty_rows_each(share, len(good), len(DIRTY_IMPRESSIONS) + 1)
    parts, listed = [], []
    for reason, ways in DIRTY_IMPRESSIONS.items():
        for number, way in enumerate(ways):
            chosen = rng.integers(0, len(good), len(range(number, each, len(ways))))
            ids = [f"dirt-{reason}-{number}-{place}" for place in range(len(chosen))]
            rows = _replaced(good.take(chosen), "impression_id", pa.array(ids, pa.string()))
            ghosts = pa.array([f"ghost-{name}" for name in ids], pa.string())
            for name in ("user_id", "page_view_id"):  # a page view of its own: users share none
                rows = _replaced(rows, name, ghosts)
            parts.append(way(rows))
            listed += [{"table": "impressions", "id": name, "reason": reason} for name in ids]
    copies = good.take(rng.permutation(len(good))[:each])
    later = pa.array(copies["timestamp"].cast(pa.int64()).to_numpy() + _DUPLICATE_DELAY_MS)
    parts.append(_replaced(copies, "timestamp", later.cast(good.schema.field("timestamp").type)))
    listed += [
        {"table": "impressions", "id": name, "reason": "duplicate_impression"}
        for name in copies["impression_id"].to_pylist()
    ]
    return pa.concat_tables(parts), listed


def dirty_actions(rng: np.random.Generator, good: pa.Table, share: float) -> tuple[pa.Table, dict[str, int]]:
    """Return dirty rows to stand among the actions `good`, and how many of each kind there are."""
    each = _dirty_rows_each(share, len(good), len(DIRTY_ACTIONS))
    parts, counts = [], {}
    for what, ways in DIRTY_ACTIONS.items():
        for number, way in enumerate(ways):
            rows = good.take(rng.integers(0, len(good), len(range(number, each, len(ways)))))
            ghosts = pa.array([f"ghost-{what}-{number}-{place}" for place in range(len(rows))], pa.string())
            parts.append(way(_replaced(rows, "user_id", ghosts)))
        counts[what] = each
    return pa.concat_tables(parts), counts


def _replaced(rows: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
