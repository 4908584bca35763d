"""Each sign of a model that is no good, planted; and none in a sound one."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from training.evaluation.health import (
    Alert,
    alerts_of,
    diverged_losses,
    is_collapsed,
    without_positives,
)
from training.evaluation.metrics import evaluate_with_curves

RNG = np.random.default_rng(1)
N = 40_000
TRUE_CTR = RNG.beta(2, 12, N)
TRUE_CVR = RNG.beta(2, 9, N)
CLICK = RNG.random(N) < TRUE_CTR
CONVERSION = CLICK & (RNG.random(N) < TRUE_CVR)


def alerts(
    p_ctr: np.ndarray = TRUE_CTR, p_cvr: np.ndarray = TRUE_CVR, conversion: np.ndarray = CONVERSION
) -> list[Alert]:
    columns = {"click": CLICK.astype(np.int8), "conversion": conversion.astype(np.int8)}
    columns |= {"p_ctr": p_ctr.astype(np.float32), "p_cvr": p_cvr.astype(np.float32)}
    columns["p_ctcvr"] = columns["p_ctr"] * columns["p_cvr"]
    evaluated = evaluate_with_curves(columns)
    return alerts_of(evaluated.metrics, evaluated.curves, [])


def kinds(found: list[Alert]) -> set[tuple[str, str]]:
    return {(alert.kind, alert.of) for alert in found}


def test_a_sound_model_raises_no_alert() -> None:
    assert alerts() == []


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.01])
def test_a_tower_that_says_nearly_one_value_is_named(spread: float) -> None:
    found = alerts(p_cvr=0.18 * (1 + spread * RNG.standard_normal(N)))
    assert ("one_value", "cvr") in kinds(found)
    assert ("one_value", "ctr") not in kinds(found)
    (text,) = (alert.text for alert in found if alert.kind == "one_value")
    assert text.startswith("p_cvr is nearly one value for all clicked impressions: 0.1")


def test_scores_near_one_and_zero_are_judged_by_their_odds() -> None:
    assert ("one_value", "ctr") not in kinds(alerts(p_ctr=np.where(CLICK, 0.999, 0.99)))
    assert ("one_value", "ctr") in kinds(alerts(p_ctr=np.zeros(N)))
    assert ("one_value", "ctr") not in kinds(alerts(p_ctr=np.where(CLICK, 1.0, 0.0)))


def test_a_model_that_ranks_by_chance_is_named_and_one_of_few_positives_is_not() -> None:
    assert ("chance", "cvr") in kinds(alerts(p_cvr=RNG.permutation(TRUE_CVR)))
    few = CONVERSION & (RNG.random(N) < 0.02)
    assert few.sum() > 5
    assert ("chance", "cvr") not in kinds(alerts(p_cvr=RNG.permutation(TRUE_CVR), conversion=few))


def test_a_log_loss_above_that_of_the_observed_rate_is_named_with_both() -> None:
    found = alerts(p_ctr=TRUE_CTR**3)
    (alert,) = (alert for alert in found if alert.kind == "worse_than_constant" and alert.of == "ctr")
    expected = log_loss(CLICK, np.full(N, CLICK.mean()))
    assert f"{expected:.5f}" in alert.text
    wide = (TRUE_CTR**3).astype(np.float32).astype(np.float64)  # scikit-learn clips float32 at 1e-7
    assert f"its log loss is {log_loss(CLICK, wide):.5f}" in alert.text


def test_a_task_without_positives_and_predictions_that_are_not_finite_are_named() -> None:
    found = kinds(alerts(conversion=np.zeros(N, bool)))
    assert {("no_positives", "cvr"), ("no_positives", "ctcvr")} <= found
    broken = TRUE_CTR.copy()
    broken[7] = math.nan
    assert ("not_finite", "ctr") in kinds(alerts(p_ctr=broken))


def log(*values: float) -> list[dict[str, float]]:
    return [
        {"step": step, "loss": value, "loss_click": value, "loss_conversion": 0.1} for step, value in enumerate(values)
    ]


def test_a_loss_that_ends_far_above_its_best_has_diverged() -> None:
    falling = np.geomspace(0.7, 0.3, 50)
    assert diverged_losses(log(*falling)) == []
    assert diverged_losses(log(*falling, *np.full(10, 0.5))) == []
    (alert,) = diverged_losses(log(*falling, *np.full(10, 2.0)))
    assert (alert.kind, alert.of) == ("diverged", "click")
    assert "2 in the last tenth" in alert.text
    assert diverged_losses(log(0.3, 2.0)) == []  # too short to tell
    assert diverged_losses([]) == []


def test_a_collapsed_run_is_known_from_what_metrics_json_says() -> None:
    def saved(found: list[Alert]) -> dict:
        return {"split": "test", "alerts": [alert._asdict() for alert in found]}

    sound, older = saved([]), {"split": "test"}
    badly_calibrated = saved([Alert("worse_than_constant", "cvr", "…")])
    collapsed = saved(alerts(p_cvr=np.full(N, 0.2)))
    assert [is_collapsed(one) for one in (sound, older, badly_calibrated, collapsed)] == [False, False, False, True]


def test_a_label_without_a_positive_in_the_train_split_is_named_before_training() -> None:
    totals = {"impressions": 1000, "clicks": 10, "conversions": 0}
    (line,) = without_positives(totals, ["click", "conversion"])
    assert line.startswith("No impression of the train split has conversion=1 (of 1,000)")
