"""The chain of layout=events: world → page views → true probabilities → labels → actions → tables with dirt → files.

    impressions/part-2024-05-01.parquet …   actions/part-…   a file a day, its rows in no order
    users/part-0.parquet  items/part-0.parquet
    truth.parquet      the true probabilities and the labels, one row a good impression
    dirt.parquet       the dirty impressions, and why jobs.preprocess quarantines them

A shop is drawn in memory, since an action depends on what the same user is shown later: about 1 KB an impression.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.raw_ids import text_id
from pipeline.kernels.auc_histogram import AucHistogram
from pipeline.simulate.oracle import (
    Labels,
    OracleProbabilities,
    RatesSettings,
    calibrate,
    draw_labels,
    oracle_probabilities,
)
from pipeline.simulate.shop.actions import draw_actions
from pipeline.simulate.shop.calendar import ACTIONS_END_MS, DAYS, SPLIT_DAYS, days_of, name_of_day
from pipeline.simulate.shop.dirt import DIRTY_IMPRESSION_SCHEMA, dirty_actions, dirty_impressions
from pipeline.simulate.shop.page_views import PageViews, draw_page_views, draw_shop_world
from pipeline.simulate.shop.tables import (
    ShopNames,
    actions_table,
    impression_ids,
    impressions_table,
    items_table,
    users_table,
)

#: Streams of random numbers behind those of the world and of its days: what happens, the tables, the dirt, the order.
_HAPPENINGS, _TABLES, _DIRT, _ORDER = 3, 4, 5, 6
LEAST_SHOP, LARGEST_SHOP = 2_000, 5_000_000  # impressions


def write_shop(folder: Path, seed: int, impressions: int, rates: RatesSettings, dirt: float) -> dict[str, Any]:
    """Write every file of the shop into `folder`; return what simulation.json says beside the settings."""
    world = draw_shop_world(seed, impressions)
    views = draw_page_views(world, seed, impressions)
    calibration = calibrate(world, rates, views.scores, views.page)
    oracle = oracle_probabilities(world, calibration, views.scores)
    outcomes = np.random.default_rng([seed, _HAPPENINGS])
    labels = draw_labels(outcomes, oracle)
    actions = draw_actions(outcomes, views, labels)
    names, of_tables = ShopNames(world), np.random.default_rng([seed, _TABLES])
    _write(folder / "users", "part-0", users_table(of_tables, world))
    _write(folder / "items", "part-0", items_table(of_tables, world, views, names))
    soil = np.random.default_rng([seed, _DIRT])
    shown, acted = impressions_table(views, names), actions_table(actions)
    in_splits = pa.array(days_of(views.shown_ms) < SPLIT_DAYS["later"][0])  # a copy of a later one would be no reject
    dirty_shown, listed = dirty_impressions(soil, shown.filter(in_splits), dirt)
    dirty_acted, left_out = dirty_actions(soil, acted, dirt)
    order = np.random.default_rng([seed, _ORDER])
    _write_days(folder / "impressions", order, pa.concat_tables([shown, dirty_shown]))
    _write_days(folder / "actions", order, pa.concat_tables([acted, dirty_acted]))
    pq.write_table(_truth(views, oracle, labels), folder / "truth.parquet")
    pq.write_table(pa.Table.from_pylist(listed, DIRTY_IMPRESSION_SCHEMA), folder / "dirt.parquet")
    reasons = [entry["reason"] for entry in listed]
    return {
        "click_logit_variance": {"interaction_share": calibration.interaction_share},
        "splits": _summaries(views, oracle, labels),
        "quarantined": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "actions": {
            "outcomes": {kind: counts for kind, counts in actions.outcomes.items() if "other" not in counts},
            "other": sum(counts.get("other", 0) for counts in actions.outcomes.values()),
            **left_out,
        },
    }


def _truth(views: PageViews, oracle: OracleProbabilities, labels: Labels) -> pa.Table:
    """Return one row a good impression: its id as in the dataset and as in the log, probabilities, labels.

    p_daction and p_cvr are given a click.
    """
    texts = impression_ids(views)
    return pa.table(
        {
            "impression_id": pa.array([text_id(text) for text in texts.to_pylist()], pa.int64()),
            "impression": texts,
            "p_ctr": pa.array(oracle.p_ctr.astype(np.float32)),
            "p_daction": pa.array(oracle.p_daction.astype(np.float32)),
            "p_cvr": pa.array(oracle.p_cvr.astype(np.float32)),
            "click": pa.array(labels.click.astype(np.int8)),
            "daction": pa.array((labels.action > 0).astype(np.int8)),
            "conversion": pa.array(labels.conversion.astype(np.int8)),
        }
    )


def _summaries(views: PageViews, oracle: OracleProbabilities, labels: Labels) -> dict[str, dict[str, Any]]:
    """Count what the good impressions of each split hold, with the AUC of the true probabilities."""
    day = days_of(views.shown_ms)
    found = {}
    for split, (first, stop) in SPLIT_DAYS.items():
        here = (day >= first) & ((day < stop) | (stop == DAYS))
        click, conversion = labels.click[here], labels.conversion[here]
        p_ctr, p_cvr = oracle.p_ctr[here], oracle.p_cvr[here]
        found[split] = {
            "impressions": int(here.sum()),
            "page_views": len(np.unique(views.page[here])),
            "clicks": int(click.sum()),
            "dactions": int((labels.action[here] > 0).sum()),
            "conversions": int(conversion.sum()),
            "true_auc": {
                "ctr_auc": _oracle_auc(p_ctr, click),
                "cvr_auc": _oracle_auc(p_cvr[click], conversion[click]),
                "ctcvr_auc": _oracle_auc(p_ctr * p_cvr, conversion),
            },
        }
    return found


def _oracle_auc(probability: np.ndarray, label: np.ndarray) -> float | None:
    histogram = AucHistogram()
    histogram.add(probability, label)
    return histogram.auc()


def _write_days(folder: Path, order: np.random.Generator, rows: pa.Table) -> None:
    """Write a file a day, the rows of each in random order; a row without a time, or of a wild clock, may be in any."""
    at_ms = rows["timestamp"].cast(pa.int64()).fill_null(0).to_numpy()
    day = days_of(at_ms)
    astray = (day < 0) | (at_ms > ACTIONS_END_MS)
    day[astray] = order.integers(0, DAYS, int(astray.sum()))
    for number in np.unique(day).tolist():
        mine = order.permutation(np.flatnonzero(day == number))
        _write(folder, f"part-{name_of_day(number)}", rows.take(mine))


def _write(folder: Path, name: str, table: pa.Table) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
