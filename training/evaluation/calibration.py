"""How well probabilities match the labels: log loss, predicted over observed, expected calibration error, curves.

Sums are exact before one rounding (`training.evaluation.exact_sums`), so they do not depend on the order of rows.
"""

# Shapes: N impressions.

import numpy as np

from training.evaluation.exact_sums import log_loss_sum, sum_of
from training.evaluation.sorted_scores import Array, CalibrationCurve, SortedScores

#: Bins of equal mass behind the expected calibration error.
ECE_BINS = 20


def mean_log_loss(target_N: Array, probability_N: Array) -> float | None:
    """Return the mean of −t ln p − (1 − t) ln(1 − p), p kept within [1e-15, 1 − 1e-15]; None where there are no impressions.

    `target_N` may be a label or a true probability (the cross entropy of `probability_N` against it).
    """
    return log_loss_sum(target_N, probability_N).over(len(probability_N)) if len(probability_N) else None


def calibration(label_N: Array, probability_N: Array) -> float | None:
    """Return positives predicted over positives observed, 1 being right; None where none was observed."""
    num_positives = int(np.count_nonzero(label_N))
    return sum_of(probability_N).over(num_positives) if num_positives else None


def calibration_curve(label: Array, score: Array, bins: int = ECE_BINS) -> CalibrationCurve:
    """Return mean prediction and share of positives in `bins` bins of equal mass (`SortedScores.calibration_curve`)."""
    return SortedScores.of(label, score).calibration_curve(bins)


def expected_calibration_error(label_N: Array, probability_N: Array) -> float | None:
    """Sum share of the bin · |mean prediction − share of positives| over 20 bins of equal mass; None without impressions."""
    return ece_of(SortedScores.of(label_N, probability_N))


def ece_of(scores: SortedScores) -> float | None:
    """Return the expected calibration error of sorted scores; None without impressions."""
    if not len(scores):
        return None
    curve = scores.calibration_curve(ECE_BINS)
    return float(np.dot(curve.count, np.abs(curve.predicted - curve.observed)) / curve.count.sum())
