"""Observed over predicted against scipy's chi-square form of Garwood's limits, against simulation, and in words."""

import numpy as np
import pytest
from scipy.stats import chi2, poisson

from training.evaluation.curves import TaskCurves
from training.evaluation.observed_rate import (
    NUM_SLICES,
    ObservedRate,
    observed_rates,
    poisson_limits,
    sentences_of,
    sentences_of_slices,
)
from training.evaluation.sorted_scores import SortedScores


def curves_of(label: np.ndarray, score: np.ndarray) -> TaskCurves:
    return TaskCurves.of(SortedScores.of(label, score.astype(np.float32)))


@pytest.mark.parametrize("count", [0, 1, 2, 10, 500, 1_000_000])
def test_the_limits_are_those_of_the_chi_square_form_and_leave_two_and_a_half_percent_on_each_side(count: int) -> None:
    low, high = poisson_limits(count)
    expected = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    assert low == pytest.approx(expected, rel=1e-9)
    assert high == pytest.approx(chi2.ppf(0.975, 2 * count + 2) / 2, rel=1e-9)
    assert poisson.cdf(count, high) == pytest.approx(0.025, rel=1e-6)
    if count:
        assert poisson.sf(count - 1, low) == pytest.approx(0.025, rel=1e-6)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    """2,000 logs of independent labels whose true rate is 1.2 times the predicted one."""
    rng, score = np.random.default_rng(1), np.full(500, 0.03)
    held = 0
    for _ in range(2000):
        rate = ObservedRate(500, float(score.sum()), int(rng.binomial(1, 1.2 * score).sum()))
        assert rate.interval is not None
        held += rate.interval[0] <= 1.2 <= rate.interval[1]
    assert 0.945 <= held / 2000 <= 0.995  # Poisson's interval is exact or wider


def test_a_task_and_its_slices_are_the_sums_of_their_impressions() -> None:
    rng = np.random.default_rng(2)
    score = rng.beta(2, 20, 4000).astype(np.float32)
    label = rng.random(4000) < score * np.where(score > np.quantile(score, 0.8), 0.5, 1.0)
    overall, *slices = observed_rates({"ctcvr": curves_of(label, score)}, {})["ctcvr"]
    assert (overall.num_impressions, overall.observed) == (4000, int(label.sum()))
    assert overall.predicted == pytest.approx(score.astype(np.float64).sum(), rel=1e-9)
    assert len(slices) == NUM_SLICES
    order = np.argsort(score, kind="stable")
    for rate, rows in zip(slices, np.array_split(order, NUM_SLICES), strict=True):
        assert rate.observed == label[rows].sum()
        assert rate.predicted == pytest.approx(score[rows].astype(np.float64).sum(), rel=1e-9)
    (sentence,) = sentences_of({"ctcvr": [overall, *slices]}, {"ctcvr": "conversions"})
    assert f"p_ctcvr is too high: {label.sum():,} conversions were observed where" in sentence
    assert sentence.count("too high (") == 1  # of the fifths the highest alone
    assert "Bids made from it are too high." in sentence


@pytest.mark.parametrize(
    ("predicted", "observed", "verdict"),
    [
        (10_000.0, 10_000, "right"),
        (10_000.0, 10_450, "right"),  # 1 is outside its interval, but it is within 5 %
        (10_000.0, 10_800, "too low"),
        (10_000.0, 8_000, "too high"),
        (100.0, 100, "unknown"),
        (100.0, 112, "unknown"),
        (100.0, 150, "too low"),
        (100.0, 0, "too high"),
        (0.5, 0, "unknown"),
        (0.0, 3, "unknown"),
    ],
)
def test_a_verdict_is_given_where_the_labels_can_tell(predicted: float, observed: int, verdict: str) -> None:
    rate = ObservedRate(100_000, predicted, observed)
    assert rate.verdict == verdict
    assert rate.as_json()["verdict"] == verdict
    assert f"{observed:,}" in rate.in_words("p_cvr", "conversions")
    if predicted == 0.0:
        assert rate.as_json()["ratio"] is None
        assert "predicts no conversions at all" in rate.in_words("p_cvr", "conversions")


def test_equal_predictions_are_one_slice() -> None:
    label = np.arange(100) < 30
    overall, only = observed_rates({"ctr": curves_of(label, np.full(100, 0.25))}, {"cvr_calibration": [0.5, 2.0]})[
        "ctr"
    ]
    assert overall == only == ObservedRate(100, 25.0, 30)


def test_an_interval_by_users_takes_the_place_of_poissons_over_all_impressions() -> None:
    label, score = np.arange(1000) < 300, np.linspace(0.1, 0.5, 1000)
    overall, *slices = observed_rates({"ctr": curves_of(label, score)}, {"ctr_calibration": [0.8, 1.25]})["ctr"]
    assert overall.interval == (0.8, 1.25)  # of observed over predicted
    assert all(one.by_users is None for one in slices)


def test_parts_of_a_slicing_that_are_off_are_named_with_their_ratio() -> None:
    parts = [
        {"value": "1", "ctr_observed_rate": ObservedRate(9000, 1000.0, 1010).as_json()},
        {"value": "2", "ctr_observed_rate": ObservedRate(9000, 1000.0, 700).as_json()},
        {"value": "others", "ctr_observed_rate": ObservedRate(9, 1.0, 2).as_json()},
        {"value": "unknown user"},
    ]
    assert sentences_of_slices({"user_gender": parts}, ["ctr", "cvr"]) == [
        "p_ctr by user_gender: too high (0.70) at 2."
    ]
    assert sentences_of_slices({"user_gender": parts[:1]}, ["ctr"]) == []
