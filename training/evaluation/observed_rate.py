"""Is a predicted rate right? Positives observed over positives predicted, with an interval, and in words.

    ratio      observed / predicted: 1 is right, and 0.8 says that the predictions are to be multiplied by 0.8
    interval   over all impressions that of `training.evaluation.intervals`, with users as the units that vary; without it, and
               of a slice, the exact Poisson limits of the observed count (Garwood 1936), over what was predicted

A sum of independent labels varies as a Poisson count if they are rare, and less if they are frequent: then that interval is
too wide. Labels of one user that come together make it too narrow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import gammaincinv

from training.evaluation.curves import TaskCurves
from training.evaluation.sorted_scores import CalibrationCurve

CONFIDENCE = 0.95
#: A ratio this near to 1 is right for bidding.
RIGHT_WITHIN = 0.05
#: Slices by predicted probability, of equal mass: the curve's bins, taken together.
NUM_SLICES = 5


@dataclass(frozen=True)
class ObservedRate:
    """Some impressions: what was predicted for them, and what was observed."""

    num_impressions: int
    predicted: float  # positives
    observed: int  # positives
    by_users: tuple[float, float] | None = None  # the interval of `ratio` where users vary; None: it is not known

    @property
    def ratio(self) -> float | None:
        """Observed over predicted; None where nothing was predicted."""
        return self.observed / self.predicted if self.predicted > 0.0 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `ratio`."""
        if self.by_users:
            return self.by_users
        low, high = poisson_limits(self.observed)
        return (low / self.predicted, high / self.predicted) if self.predicted > 0.0 else None

    @property
    def verdict(self) -> str:
        """`too high` or `too low`: more than 5 % off, and the interval has no 1 in it. `right`: within 5 %, and the
        interval within 10 %. Else `unknown`: too few positives."""
        if self.ratio is None or self.interval is None:
            return "unknown"
        low, high = self.interval
        if abs(self.ratio - 1.0) <= RIGHT_WITHIN:
            return "right" if low >= 1.0 - 2.0 * RIGHT_WITHIN and high <= 1.0 + 2.0 * RIGHT_WITHIN else "unknown"
        if low <= 1.0 <= high:
            return "unknown"
        return "too low" if self.ratio > 1.0 else "too high"

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name, for metrics.json."""
        low, high = self.interval or (None, None)
        found = {"num_impressions": self.num_impressions, "predicted": self.predicted, "observed": self.observed}
        return found | {"ratio": self.ratio, "low": low, "high": high, "verdict": self.verdict}

    def in_words(self, score: str, positives: str) -> str:
        """Say it in one sentence: `score` is the column, `positives` what it counts."""
        if self.ratio is None or self.interval is None:
            return f"{score} predicts no {positives} at all, and {self.observed:,} were observed."
        low, high = self.interval
        figures = (
            f"{self.observed:,} {positives} were observed where {self.predicted:,.0f} were predicted: "
            f"{self.ratio:.3f} of it (95 % interval {low:.3f} to {high:.3f})"
        )
        return {
            "right": f"{score} is right within {RIGHT_WITHIN:.0%}: {figures}.",
            "unknown": f"{score} may be right or not, for there are too few {positives} to tell: {figures}.",
            "too high": f"{score} is too high: {figures}. Bids made from it are too high.",
            "too low": f"{score} is too low: {figures}. Bids made from it are too low.",
        }[self.verdict]


def poisson_limits(count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact limits of a Poisson mean of which `count` was observed (Garwood 1936)."""
    tail = (1.0 - confidence) / 2.0
    low = float(gammaincinv(count, tail)) if count else 0.0
    return low, float(gammaincinv(count + 1, 1.0 - tail))


def observed_rates(
    curves: Mapping[str, TaskCurves], intervals: Mapping[str, Sequence[float]]
) -> dict[str, list[ObservedRate]]:
    """Return, for each task, all its impressions, and then slices of equal mass from the lowest predictions to the highest.

    `intervals` may have that of <task>_calibration, which is predicted over observed.
    """
    found = {}
    for name, one in curves.items():
        overall = _rate_of(one.calibration)
        if f"{name}_calibration" in intervals:
            low, high = intervals[f"{name}_calibration"]
            overall = replace(overall, by_users=(1.0 / high, 1.0 / low))
        found[name] = [overall, *_slices(one.calibration)]
    return found


def _slices(curve: CalibrationCurve) -> list[ObservedRate]:
    parts = np.array_split(np.arange(len(curve.count)), NUM_SLICES)
    return [
        _rate_of(CalibrationCurve(curve.predicted[part], curve.observed[part], curve.count[part]))
        for part in parts
        if len(part)
    ]


def _rate_of(curve: CalibrationCurve) -> ObservedRate:
    predicted = float(np.dot(curve.predicted, curve.count))
    return ObservedRate(int(curve.count.sum()), predicted, round(float(np.dot(curve.observed, curve.count))))


def sentences_of(rates: Mapping[str, Sequence[ObservedRate]], positives_of: Mapping[str, str]) -> list[str]:
    """Say for each task whether its predicted rate is right, over all impressions, and in which slices it is off."""
    lines = []
    for task, (overall, *slices) in rates.items():
        off = [
            f"{rate.verdict} ({rate.ratio:.2f}) where it is {rate.predicted / rate.num_impressions:.4g} on average"
            for rate in slices
            if rate.verdict in ("too high", "too low")
        ]
        more = f" By fifths of p_{task}: {'; '.join(off)}." if off else ""
        lines.append(overall.in_words(f"p_{task}", positives_of[task]) + more)
    return lines


def sentences_of_slices(slices: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Iterable[str]) -> list[str]:
    """Name the parts of each slicing (`training.evaluation.slices`) in which the predicted rate of a task is off."""
    lines = []
    for name, parts in slices.items():
        for task in tasks:
            rates = [
                (part["value"], part[f"{task}_observed_rate"]) for part in parts if f"{task}_observed_rate" in part
            ]
            off = [
                f"{rate['verdict']} ({rate['ratio']:.2f}) at {value}"
                for value, rate in rates
                if rate["verdict"] in ("too high", "too low")
            ]
            if off:
                lines.append(f"p_{task} by {name}: {'; '.join(off)}.")
    return lines
