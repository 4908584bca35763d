"""Figures of parts of a split against plain selections of rows."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from training.evaluation.metrics import cvr_by_click_propensity, evaluate
from training.evaluation.ranking import expected_auc
from training.evaluation.settings import PURCHASES
from training.evaluation.slices import (
    ACTIVITY,
    MOST_LISTED,
    OTHERS,
    UNKNOWN_USER,
    Slicing,
    evaluate_slices,
    slicing_by_activity,
    slicing_of_users,
)
from training.evaluation.users import Users
from training.feed.batch import UNKNOWN_GROUP


def columns(size=5000, seed=0):
    rng = np.random.default_rng(seed)
    p_ctr, p_cvr = rng.beta(2, 6, size), rng.beta(2, 5, size)
    click = rng.random(size) < p_ctr
    found = {
        "click": click.astype(np.int8),
        "conversion": (click & (rng.random(size) < p_cvr)).astype(np.int8),
        "p_ctr": np.clip(p_ctr * rng.lognormal(0, 0.3, size), 0, 1).astype(np.float32).round(3),
        "p_cvr": np.clip(p_cvr * rng.lognormal(0, 0.3, size), 0.001, 0.99).astype(np.float32).round(3),
        "true_p_ctr": p_ctr.astype(np.float32),
        "true_p_cvr": p_cvr.astype(np.float32),
    }
    return found | {"p_ctcvr": found["p_ctr"] * found["p_cvr"]}


def test_a_part_has_the_figures_of_its_rows_alone():
    predictions = columns()
    number = np.random.default_rng(1).choice(3, 5000, p=[0.2, 0.7, 0.1]).astype(np.int32)
    parts = evaluate_slices(predictions, [Slicing("position", number, ["first", "second", "third"])])["position"]
    assert [part["value"] for part in parts] == ["second", "first", "third"]
    for part, wanted in zip(parts, (1, 0, 2), strict=True):
        rows = {name: column[number == wanted] for name, column in predictions.items()}
        alone, clicked = evaluate(rows), rows["click"] == 1
        assert part["num_impressions"] == alone["num_impressions"]
        assert (part["ctr_num_positives"], part["cvr_num_positives"]) == (alone["num_clicks"], alone["num_conversions"])
        for task in ("ctr", "cvr", "ctcvr"):
            assert part[f"{task}_auc"] == alone[f"{task}_auc"]
            assert part[f"{task}_log_loss"] == pytest.approx(alone[f"{task}_log_loss"], rel=1e-12)
            assert part[f"{task}_calibration"] == pytest.approx(alone[f"{task}_calibration"], rel=1e-12)
        converted = rows["conversion"][clicked]
        assert part["cvr_auc"] == pytest.approx(roc_auc_score(converted, rows["p_cvr"][clicked]))
        assert part["cvr_log_loss"] == pytest.approx(
            log_loss(converted, rows["p_cvr"][clicked].astype(float)), rel=1e-9
        )


def test_all_but_the_largest_parts_are_one():
    predictions = columns()
    number = (np.arange(5000) % 100).astype(np.int32)
    number[:200] = 7
    parts = evaluate_slices(predictions, [Slicing("item", number, [f"id {n}" for n in range(100)])])["item"]
    assert len(parts) == MOST_LISTED + 1
    assert (parts[0]["value"], parts[-1]["value"]) == ("id 7", OTHERS)
    assert sum(part["num_impressions"] for part in parts) == 5000
    assert sum(part["ctr_num_positives"] for part in parts) == predictions["click"].sum()


def test_a_part_of_one_class_has_no_auc_and_a_column_that_is_not_finite_no_figures():
    predictions = columns(100)
    predictions["click"][:10] = predictions["conversion"][:10] = 0
    predictions["p_ctcvr"][3] = np.nan
    number = (np.arange(100) >= 10).astype(np.int32)
    parts = evaluate_slices(predictions, [Slicing("x", number, ["no click", "rest"])])["x"]
    (none,) = [part for part in parts if part["value"] == "no click"]
    assert (none["ctr_auc"], none["ctr_calibration"], none["cvr_log_loss"]) == (None, None, None)
    assert none["ctr_log_loss"] > 0
    assert "ctcvr_auc" not in none


def test_users_are_divided_by_their_purchases_at_the_papers_bounds():
    group = np.array([3, 3, 5, 8, 9, UNKNOWN_GROUP, 11, 12])
    users = Users.of(group)
    purchases = np.array([0, 10, 11, 50, 51, 20])  # of users 3, 5, 8, 9, 11, 12
    found = slicing_of_users("user_purchases", users, purchases, PURCHASES)
    assert [found.values[number] for number in found.number_N] == [
        "[0,10]", "[0,10]", "[0,10]", "[11,20]", "[21,50]", UNKNOWN_USER, "(50,∞)", "[11,20]",
    ]  # fmt: skip
    shown = slicing_by_activity(Users.of(np.concatenate([np.repeat([1, 2], [10, 11]), [UNKNOWN_GROUP]])))
    assert [shown.values[number] for number in shown.number_N] == ["[0,10]"] * 10 + ["[11,100]"] * 11 + [UNKNOWN_USER]
    assert ACTIVITY[0] == 10


def test_tenths_by_click_propensity_compare_p_cvr_with_the_true_one_over_all_impressions():
    predictions = columns()
    true = {"p_ctr": predictions["true_p_ctr"], "p_cvr": predictions["true_p_cvr"]}
    found = cvr_by_click_propensity(predictions, true)
    assert [part["num_impressions"] for part in found] == [500] * 10
    order = np.argsort(true["p_ctr"])
    for part, rows in zip(found, order.reshape(10, 500), strict=True):
        p, t = predictions["p_cvr"][rows].astype(float), true["p_cvr"][rows].astype(float)
        assert part["true_ctr"] == pytest.approx(true["p_ctr"][rows].mean(dtype=float))
        assert part["calibration"] == pytest.approx(p.mean() / t.mean())
        clipped = np.clip(p, 1e-15, 1 - 1e-15)
        assert part["log_loss"] == pytest.approx(np.mean(-t * np.log(clipped) - (1 - t) * np.log(1 - clipped)))
        assert part["auc"] == pytest.approx(expected_auc(t, p))
        assert part["true_log_loss"] < part["log_loss"]
        assert part["true_auc"] > part["auc"]
    assert [part["true_ctr"] for part in found] == sorted(part["true_ctr"] for part in found)
    assert cvr_by_click_propensity({**predictions, "p_cvr": np.full(5000, np.nan, np.float32)}, true) == []
    constant = {**true, "p_ctr": np.full(5000, 0.5, np.float32)}
    assert [part["num_impressions"] for part in cvr_by_click_propensity(predictions, constant)] == [5000]
