"""Post-hoc calibrators: a rising curve for each predicted probability, fitted on one split and applied to others.

    platt      calibrated = 1 / (1 + exp(−(slope · log-odds + intercept)))   Platt 1999, on log-odds: two numbers
    isotonic   the rising curve nearest to the labels                        Zadrozny and Elkan 2002: a step for every change

Each output is fitted by its own label over its own impressions: p_ctr by clicks, p_cvr by conversions of clicked impressions,
p_ctcvr by conversions of all. So a calibrated p_ctcvr is no longer the product of the other two. A calibrator is a plain JSON
file, which needs nothing but this page to be applied.
"""

# Shapes: N impressions.

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from pipeline.atomic_files import write_whole
from pipeline.dataset.json_text import WrongType, parse_json, typed
from pipeline.errors import InputError
from training.evaluation.exact_sums import LOG_LOSS_MARGIN
from training.evaluation.metrics import tasks
from training.evaluation.settings import CALIBRATORS, PLATT
from training.evaluation.sorted_scores import Array

CALIBRATOR_FILE = "calibrator.json"
_CALIBRATOR_VERSION = 1
_MOST_NEWTON_STEPS = 100


@dataclass(frozen=True)
class Platt:
    """Two numbers: the calibrated log-odds are slope · log-odds + intercept."""

    slope: float
    intercept: float

    def apply(self, score_N: Array) -> Array:
        """Return the calibrated probabilities, of the type of `score_N`."""
        return expit(self.slope * _log_odds(score_N) + self.intercept).astype(score_N.dtype)


@dataclass(frozen=True)
class Isotonic:
    """The corners of a rising curve; between two of them it is straight, and beyond the last ones level."""

    predicted: tuple[float, ...]
    calibrated: tuple[float, ...]

    def apply(self, score_N: Array) -> Array:
        """Return the calibrated probabilities, of the type of `score_N`."""
        return np.interp(score_N, self.predicted, self.calibrated).astype(score_N.dtype)


@dataclass(frozen=True)
class Calibrator:
    """A curve for each output of a model, and what they were fitted on."""

    kind: str
    fitted_on: Mapping[str, Any]  # the provenance of the predictions
    curve_of: Mapping[str, Platt | Isotonic]  # output → curve

    def apply(self, columns: Mapping[str, Array]) -> "CalibratedColumns":
        """Return `columns`, those that have a curve calibrated when they are asked for."""
        return CalibratedColumns(columns, self.curve_of)

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        curves = {name: asdict(curve) for name, curve in self.curve_of.items()}
        content = {"format_version": _CALIBRATOR_VERSION, "kind": self.kind, "fitted_on": dict(self.fitted_on)}
        write_whole(path, json.dumps(content | {"curves": curves}, indent=1) + "\n")


class CalibratedColumns(Mapping[str, Array]):
    """Columns of predictions, calibrated as they are read."""

    def __init__(self, columns: Mapping[str, Array], curve_of: Mapping[str, Platt | Isotonic]) -> None:
        self._columns, self._curve_of = columns, curve_of

    def __getitem__(self, name: str) -> Array:
        column = self._columns[name]
        return self._curve_of[name].apply(column) if name in self._curve_of else column

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def read_calibrator(path: Path, remedy: str) -> Calibrator:
    """Read a calibrator. Raises InputError, which ends with `remedy`, where the file is none or a curve is not rising."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from error
    raw = parse_json(text, str(path), remedy)
    try:
        return _calibrator_of(raw)
    except (WrongType, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no calibrator ({error}); {remedy}") from error


def fit_calibrator(kind: str, predictions: Mapping[str, Array], fitted_on: Mapping[str, Any]) -> Calibrator:
    """Fit a curve for each output of `predictions` that a label judges.

    Raises InputError where the labels of an output are of one class, and where it ranks no better than chance.
    """
    assert kind in CALIBRATORS
    click_N = predictions["click"].astype(bool)
    curves: dict[str, Platt | Isotonic] = {}
    for task in tasks(predictions):
        rows = click_N if task.clicked_only else slice(None)
        label_N, score_N = task.label_N[rows], predictions[task.score][rows]
        num_positives = int(np.count_nonzero(label_N))
        if num_positives in (0, len(label_N)) or not np.isfinite(score_N).all():
            raise InputError(
                f"calibrator={kind}: {task.score} cannot be calibrated on split={fitted_on.get('split')}, which has "
                f"{num_positives} positives among {len(label_N)} impressions, or predictions that are not finite; leave "
                "calibrator out, or give a dataset with a larger validation split."
            )
        curves[task.score] = (
            _fit_platt(label_N, score_N, task.score) if kind == PLATT else fit_isotonic(label_N, score_N)
        )
    return Calibrator(kind, fitted_on, curves)


def fit_isotonic(label_N: Array, score_N: Array) -> Isotonic:
    """Fit the rising step function of least squared error, and keep the corners of its steps.

    Its ends are kept 1 / (2 N) away from 0 and 1: no number of labels proves that an event never happens.
    """
    distinct, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    mean = np.bincount(place_N, weights=label_N) / count
    steps = isotonic_regression(mean, weights=count)
    first, last = steps.blocks[:-1], steps.blocks[1:] - 1
    corners = np.unique(np.concatenate([first, last]))
    margin = 1.0 / (2.0 * len(label_N))
    calibrated = np.clip(steps.x[corners], margin, 1.0 - margin)
    return Isotonic(tuple(distinct[corners].astype(float).tolist()), tuple(calibrated.tolist()))


def _fit_platt(label_N: Array, score_N: Array, name: str) -> Platt:
    platt = fit_platt(label_N, score_N)
    if not (math.isfinite(platt.slope) and platt.slope > 0.0):
        raise InputError(
            f"calibrator={PLATT}: {name} ranks no better than chance where it is fitted (slope {platt.slope:.3g}), so no "
            "calibrator can help; train the model again."
        )
    return platt


def fit_platt(label_N: Array, score_N: Array) -> Platt:
    """Maximise the likelihood of the labels by Newton's method; steps are halved while they do not raise it."""
    x_N, y_N = _log_odds(score_N), label_N.astype(np.float64)
    center = float(x_N.mean())
    x_N = x_N - center  # slope and intercept nearly independent
    rate = float(y_N.mean())
    at = np.array([1.0, float(logit(rate))])
    best = _likelihood(at, x_N, y_N)
    for _ in range(_MOST_NEWTON_STEPS):
        p_N = expit(at[0] * x_N + at[1])
        w_N = p_N * (1.0 - p_N)
        gradient = np.array([np.dot(y_N - p_N, x_N), float((y_N - p_N).sum())])
        mixed = float(np.dot(w_N, x_N))
        hessian = np.array([[np.dot(w_N, x_N * x_N), mixed], [mixed, float(w_N.sum())]])
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]  # equal scores have no slope of their own
        while (after := _likelihood(at + step, x_N, y_N)) < best and np.abs(step).max() > 1e-12:
            step = step / 2.0
        if after <= best:
            break
        at, best = at + step, after
    return Platt(float(at[0]), float(at[1] - at[0] * center))


def _likelihood(at: Array, x_N: Array, y_N: Array) -> float:
    z_N = at[0] * x_N + at[1]
    return float(np.dot(y_N, z_N) - np.logaddexp(0.0, z_N).sum())


def _log_odds(score_N: Array) -> Array:
    return logit(np.clip(score_N.astype(np.float64), LOG_LOSS_MARGIN, 1.0 - LOG_LOSS_MARGIN))


def _calibrator_of(raw: Any) -> Calibrator:
    if not isinstance(raw, dict) or raw.get("format_version") != _CALIBRATOR_VERSION:
        raise ValueError(f"it has no format_version={_CALIBRATOR_VERSION}")
    kind = raw["kind"]
    if kind not in CALIBRATORS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(CALIBRATORS)}")
    curves: dict[str, Platt | Isotonic] = {}
    for name, entry in typed(Mapping[str, Any], raw["curves"], "curves").items():
        place = f"curves.{name}"
        if kind == PLATT:
            platt: Platt = typed(Platt, entry, place)
            if platt.slope <= 0.0:
                raise ValueError(f"{place}.slope={platt.slope} is not above 0")
            curves[name] = platt
            continue
        curve = Isotonic(
            *(
                tuple(float(value) for value in typed(tuple[float, ...], entry[key], f"{place}.{key}"))
                for key in ("predicted", "calibrated")
            )
        )
        _check_rises(curve, place)
        curves[name] = curve
    return Calibrator(kind, typed(Mapping[str, Any], raw["fitted_on"], "fitted_on"), curves)


def _check_rises(curve: Isotonic, place: str) -> None:
    x, y = np.array(curve.predicted), np.array(curve.calibrated)
    if len(x) == 0 or len(x) != len(y) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
        raise ValueError(f"{place} does not rise")
    if not ((y >= 0.0) & (y <= 1.0)).all():
        raise ValueError(f"{place}.calibrated has a value that is no probability")
