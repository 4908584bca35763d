"""Platt and isotonic calibrators against scikit-learn's, on their own and read back from JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from pipeline.errors import InputError
from training.evaluation.calibrators import (
    Isotonic,
    Platt,
    fit_calibrator,
    fit_isotonic,
    fit_platt,
    read_calibrator,
)
from training.evaluation.metrics import evaluate
from training.evaluation.settings import CALIBRATORS

RNG = np.random.default_rng(3)
N = 20_000


def a_split(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Predictions that are too high for CVR and too spread for CTR, and labels of the true probabilities."""
    true_ctr, true_cvr = rng.beta(2, 12, N), rng.beta(2, 9, N)
    click = rng.random(N) < true_ctr
    odds = (true_ctr / (1 - true_ctr)) ** 1.5
    columns = {"click": click.astype(np.int8), "conversion": (click & (rng.random(N) < true_cvr)).astype(np.int8)}
    columns["p_ctr"] = (odds / (1 + odds)).astype(np.float32)
    columns["p_cvr"] = np.minimum(1.6 * true_cvr, 0.99).astype(np.float32)
    columns["p_ctcvr"] = columns["p_ctr"] * columns["p_cvr"]
    return columns


FITTED, APPLIED = a_split(RNG), a_split(RNG)


def test_platt_is_scikit_learns_logistic_regression_on_log_odds() -> None:
    label, score = FITTED["click"], FITTED["p_ctr"].astype(np.float64)
    x = np.log(score / (1 - score))[:, None]
    expected = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(x, label)
    platt = fit_platt(label, score)
    assert platt.slope == pytest.approx(expected.coef_[0, 0], rel=1e-4)
    assert platt.intercept == pytest.approx(expected.intercept_[0], rel=1e-4)
    np.testing.assert_allclose(platt.apply(score), expected.predict_proba(x)[:, 1], rtol=1e-4)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct scores", "many ties"])
def test_isotonic_is_scikit_learns_between_the_scores_and_beyond_them(ties: bool) -> None:
    label, score = FITTED["conversion"], FITTED["p_ctcvr"].astype(np.float64)
    score = np.round(score, 3) if ties else score
    asked = np.concatenate([[0.0], np.linspace(0, 0.6, 5000), APPLIED["p_ctcvr"].astype(np.float64), [1.0]])
    margin = 1 / (2 * N)
    expected = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip").fit(score, label)
    np.testing.assert_allclose(fit_isotonic(label, score).apply(asked), expected.predict(asked), rtol=1e-6)


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_a_calibrator_mends_another_split_by_column_and_survives_its_file(kind: str, tmp_path: Path) -> None:
    fitted = fit_calibrator(kind, FITTED, {"split": "validation", "checkpoint": "step-00000007"})
    fitted.write(tmp_path / "calibrator.json")
    calibrator = read_calibrator(tmp_path / "calibrator.json", "fit it again.")
    assert calibrator == fitted
    columns = calibrator.apply(APPLIED)
    before, after = evaluate(APPLIED), evaluate(columns)
    for task in ("ctr", "cvr", "ctcvr"):
        assert columns[f"p_{task}"].dtype == np.float32
        assert after[f"{task}_log_loss"] < before[f"{task}_log_loss"]
        assert after[f"{task}_ece"] < before[f"{task}_ece"]
        assert after[f"{task}_auc"] == pytest.approx(before[f"{task}_auc"], abs=0.01)
    assert before["cvr_calibration"] > 1.4
    assert after["cvr_calibration"] == pytest.approx(1, abs=0.1)
    assert columns["click"] is APPLIED["click"]


def test_the_ends_of_an_isotonic_curve_are_neither_0_nor_1() -> None:
    label, score = np.array([0, 0, 1, 0, 1, 1]), np.linspace(0.1, 0.9, 6)
    curve = fit_isotonic(label, score)
    assert (curve.calibrated[0], curve.calibrated[-1]) == (1 / 12, 11 / 12)
    assert fit_isotonic(np.array([0, 1]), np.array([0.3, 0.3])) == Isotonic((0.3,), (0.5,))


def test_probabilities_of_0_and_1_are_calibrated_and_labels_that_scores_separate_are_not_refused() -> None:
    label = np.array([0, 1, 0, 1] * 50)
    platt = fit_platt(label, np.array([0.0, 1.0, 0.5, 0.5] * 50))
    assert np.isfinite([platt.slope, platt.intercept]).all()
    assert ((platt.apply(np.array([0.0, 1.0])) >= 0) & (platt.apply(np.array([0.0, 1.0])) <= 1)).all()
    equal = fit_platt(label, np.full(200, 0.1))
    assert equal.apply(np.array([0.1])) == pytest.approx(0.5)


def test_what_cannot_be_fitted_is_refused() -> None:
    none = {**FITTED, "conversion": np.zeros(N, np.int8)}
    with pytest.raises(
        InputError, match=r"p_cvr cannot be calibrated on split=validation, which has 0 positives among"
    ):
        fit_calibrator("platt", none, {"split": "validation"})
    upside_down = {**FITTED, "p_ctr": 1 - FITTED["p_ctr"]}
    with pytest.raises(InputError, match="p_ctr ranks no better than chance where it is fitted"):
        fit_calibrator("platt", upside_down, {"split": "validation"})
    with pytest.raises(InputError, match="not finite"):
        fit_calibrator("isotonic", {**FITTED, "p_ctr": np.full(N, np.nan)}, {"split": "validation"})


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(format_version=2),
        lambda raw: raw.update(kind="beta"),
        lambda raw: raw.pop("fitted_on"),
        lambda raw: raw["curves"]["p_ctr"].update(slope=-1.0),
        lambda raw: raw["curves"]["p_ctr"].update(slope="1"),
        lambda raw: raw["curves"]["p_ctr"].pop("intercept"),
        lambda raw: raw.update(curves=[1]),
        lambda raw: raw.update(kind="isotonic"),
    ],
)
def test_a_file_that_is_no_calibrator_is_refused(change, tmp_path: Path) -> None:
    path = tmp_path / "calibrator.json"
    fit_calibrator("platt", FITTED, {"split": "validation"}).write(path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"calibrator\.json is no calibrator .*; fit it again\.\Z"):
        read_calibrator(path, "fit it again.")
    with pytest.raises(InputError, match="cannot be read"):
        read_calibrator(tmp_path / "absent.json", "fit it again.")


@pytest.mark.parametrize(
    "points", [([], []), ([0.1, 0.1], [0.1, 0.2]), ([0.1, 0.2], [0.3, 0.2]), ([0.1], [1.5]), ([0.1], [])]
)
def test_a_curve_that_does_not_rise_is_refused(points: tuple[list[float], list[float]], tmp_path: Path) -> None:
    path = tmp_path / "calibrator.json"
    curves = {"p_ctr": {"predicted": points[0], "calibrated": points[1]}}
    path.write_text(json.dumps({"format_version": 1, "kind": "isotonic", "fitted_on": {}, "curves": curves}))
    with pytest.raises(InputError, match=r"curves\.p_ctr"):
        read_calibrator(path, "fit it again.")


def test_calibrated_values_rise_with_the_prediction() -> None:
    score = np.sort(APPLIED["p_ctr"])
    for curve in (Platt(0.7, -0.2), fit_isotonic(FITTED["click"], FITTED["p_ctr"])):
        assert (np.diff(curve.apply(score)) >= 0).all()
