"""What the charts of one task are drawn from: a ROC curve, a calibration curve and a histogram, a few kilobytes in all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.calibration import ECE_BINS
from training.evaluation.sorted_scores import CalibrationCurve, RocCurve, SortedScores

HISTOGRAM_BINS = 40


@dataclass(frozen=True)
class Histogram:
    """Counts of predicted probabilities between logarithmic edges; probabilities of 0 are in the first bin."""

    edges: NDArray[np.float64]
    negatives: NDArray[np.int64]
    positives: NDArray[np.int64]

    @classmethod
    def of(cls, scores: SortedScores) -> "Histogram | None":
        """Count the scores; None where all are 0."""
        first_positive = int(scores.places_of(np.zeros(1), "right")[0])
        if first_positive == len(scores):
            return None
        low, high = scores.score_at(np.array([first_positive, len(scores) - 1])).tolist()
        edges = np.geomspace(low * 0.99, max(high * 1.01, low * 1.5), HISTOGRAM_BINS + 1)
        places = scores.places_of(edges, "left")
        places[0], places[-1] = 0, len(scores)
        positives = np.diff(scores.positives_before(places))
        return cls(edges, np.diff(places) - positives, positives)


@dataclass(frozen=True)
class TaskCurves:
    """The charts of one task; a chart that is undefined is None."""

    roc: RocCurve | None
    oracle_roc: RocCurve | None  # of the true probabilities, where they are known
    calibration: CalibrationCurve
    histogram: Histogram | None

    @classmethod
    def of(cls, scores: SortedScores, oracle_roc: RocCurve | None = None) -> "TaskCurves":
        """Draw the curves of a task's scores."""
        return cls(scores.roc_curve(), oracle_roc, scores.calibration_curve(ECE_BINS), Histogram.of(scores))
