"""How well probabilities match the labels: log loss, predicted over observed, expected calibration error, curves.

Sums run in float64 over pieces of a million impressions, so a float32 column of any length needs no float64 copy.
"""

# Shapes: N impressions.

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.ranking import Array

#: Probabilities are kept this far from 0 and 1 before a logarithm is taken.
LOG_LOSS_MARGIN = 1e-15
#: Bins of equal mass behind the expected calibration error.
ECE_BINS = 20
_PIECE = 1 << 20


def mean_log_loss(target_N: Array, probability_N: Array) -> float | None:
    """Return the mean of −t ln p − (1 − t) ln(1 − p), p kept within [1e-15, 1 − 1e-15]; None where there are no impressions.

    `target_N` may be a label or a true probability (the cross entropy of `probability_N` against it).
    """
    total = 0.0
    for piece in _pieces(len(probability_N)):
        target = target_N[piece].astype(np.float64)
        probability = np.clip(probability_N[piece].astype(np.float64), LOG_LOSS_MARGIN, 1.0 - LOG_LOSS_MARGIN)
        total -= float(np.dot(target, np.log(probability)) + np.dot(1.0 - target, np.log1p(-probability)))
    return total / len(probability_N) if len(probability_N) else None


def calibration(label_N: Array, probability_N: Array) -> float | None:
    """Return positives predicted over positives observed, 1 being right; None where none was observed."""
    observed = float(label_N.sum(dtype=np.float64))
    return float(probability_N.sum(dtype=np.float64)) / observed if observed > 0 else None


@dataclass(frozen=True)
class CalibrationCurve:
    """Per bin of predicted probability, in rising order and without empty bins."""

    predicted: NDArray[np.float64]  # mean probability
    observed: NDArray[np.float64]  # share of positives
    count: NDArray[np.int64]


def calibration_curve(
    label: Array, score: Array, bins: int = ECE_BINS, ascending: Array | None = None
) -> CalibrationCurve:
    """Return mean prediction and share of positives in `bins` bins of equal mass.

    The edges are quantiles of the predictions and equal predictions share a bin, so neither depends on the order of rows;
    with many ties there are fewer bins and unequal ones.
    """
    if len(score) == 0:
        return CalibrationCurve(np.empty(0), np.empty(0), np.empty(0, np.int64))
    ascending = np.sort(score) if ascending is None else ascending
    last_of_bin = -(-np.arange(1, bins) * len(ascending) // bins) - 1  # ceil(q N / Q) - 1; a bin holds its upper edge
    edge = np.unique(ascending[last_of_bin])
    count = np.zeros(len(edge) + 1, np.int64)
    predicted, observed = np.zeros((2, len(edge) + 1))
    for piece in _pieces(len(score)):
        bin_of = np.searchsorted(edge, score[piece], side="left")
        count += np.bincount(bin_of, minlength=len(count))
        predicted += np.bincount(bin_of, weights=score[piece], minlength=len(count))
        observed += np.bincount(bin_of, weights=label[piece], minlength=len(count))
    filled = count > 0
    return CalibrationCurve(predicted[filled] / count[filled], observed[filled] / count[filled], count[filled])


def expected_calibration_error(label_N: Array, probability_N: Array, ascending_N: Array | None = None) -> float | None:
    """Sum share of the bin · |mean prediction − share of positives| over 20 bins of equal mass; None without impressions."""
    if len(probability_N) == 0:
        return None
    curve = calibration_curve(label_N, probability_N, ECE_BINS, ascending_N)
    return float(np.dot(curve.count, np.abs(curve.predicted - curve.observed)) / curve.count.sum())


def _pieces(length: int) -> Iterator[slice]:
    return (slice(begin, begin + _PIECE) for begin in range(0, length, _PIECE))
