"""Signs that a model is no good, in words: for the terminal, metrics.json (`alerts`) and the report.

    not_finite            a probability is NaN or infinite
    one_value             a tower says nearly the same for all
    chance                it ranks no better than chance
    worse_than_constant   its log loss is above that of one probability for all
    no_positives          a task without a positive: nothing can be learned, or nothing measured
    diverged              a training loss ended at twice its best or more

A run with one of the first three, or the last one, has collapsed (`is_collapsed`); jobs.compare counts them over seeds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from training.evaluation.curves import TaskCurves
from training.evaluation.metrics import Metrics
from training.evaluation.sorted_scores import CalibrationCurve

COLLAPSED = frozenset(("not_finite", "one_value", "chance", "diverged"))
#: Task → what its positives are.
POSITIVES = {"ctr": "clicks", "cvr": "conversions", "ctavr": "dactions"}
POSITIVES |= dict.fromkeys(("ctcvr", "ctcvr_independent"), "conversions")
#: Odds of the highest twentieth over those of the lowest, below which a tower says one value.
_LEAST_ODDS_RATIO = 1.1
#: Impressions below which neither twentieths nor a rank tell anything.
_LEAST_IMPRESSIONS = 100
#: Standard errors above ½ that an AUC has to be, and the largest standard error that tells.
_NUM_ERRORS, _LARGEST_ERROR = 2.0, 0.02
#: A loss that ends at this multiple of its best tenth of the run has diverged; a run of fewer entries does not tell.
_DIVERGED, _LEAST_ENTRIES = 2.0, 20


class Alert(NamedTuple):
    """Something that is wrong with a model."""

    kind: str
    of: str  # a task or a loss
    text: str


def alerts_of(metrics: Metrics, curves: Mapping[str, TaskCurves], log: Sequence[Mapping[str, float]]) -> list[Alert]:
    """Look at an evaluation, and at the log of the training."""
    found = [
        alert for task in POSITIVES if f"{task}_auc" in metrics for alert in _of_task(task, metrics, curves.get(task))
    ]
    return found + diverged_losses(log)


def is_collapsed(evaluation: Mapping[str, Any]) -> bool:
    """Tell whether a run has collapsed, from the content of its metrics.json; one without alerts, of an older release, counts as sound."""
    return any(alert["kind"] in COLLAPSED for alert in evaluation.get("alerts", ()))


def without_positives(totals: Mapping[str, int], labels: Iterable[str]) -> list[str]:
    """Say which of `labels` have no positive in a train split with the manifest's `totals`."""
    return [
        f"No impression of the train split has {label}=1 (of {totals['impressions']:,}), so nothing teaches the model when "
        "it happens; its predictions of it will be worthless."
        for label in labels
        if totals[f"{label}s"] == 0
    ]


def diverged_losses(log: Sequence[Mapping[str, float]]) -> list[Alert]:
    """Compare the last tenth of the logged steps with the best tenth, for each loss."""
    found = []
    for name in sorted({name for entry in log for name in entry if name.startswith("loss_")}):
        values = np.array([entry[name] for entry in log if name in entry], np.float64)
        if len(values) < _LEAST_ENTRIES:
            continue
        *earlier, last = (float(part.mean()) for part in np.array_split(values, 10))
        best = min(earlier)
        if last > _DIVERGED * best:
            loss = name.removeprefix("loss_")
            text = (
                f"The training loss of {loss} diverged: {last:.4g} in the last tenth of the steps, and {best:.4g} in its "
                "best tenth; lower optimizer.embeddings.lr or optimizer.towers.lr."
            )
            found.append(Alert("diverged", loss, text))
    return found


def _of_task(task: str, metrics: Metrics, curves: TaskCurves | None) -> list[Alert]:
    positives, impressions = POSITIVES[task], "clicked impressions" if task == "cvr" else "impressions"
    score = f"p_{task}"
    if curves is None:
        return [Alert("not_finite", task, f"{score} is NaN or infinite for some impressions.")]
    curve = curves.calibration
    number, num_positives = int(curve.count.sum()), round(float(np.dot(curve.observed, curve.count)))
    if number == 0 or num_positives == 0:
        text = (
            f"None of {number:,} {impressions} is a positive of {task}: without {positives} {score} cannot be judged."
        )
        found = [Alert("no_positives", task, text)]
    else:
        found = _of_judged(task, metrics, number, num_positives)
    if number >= _LEAST_IMPRESSIONS and _odds_ratio(curve) < _LEAST_ODDS_RATIO:
        text = (
            f"{score} is nearly one value for all {impressions}: {curve.predicted[0]:.4g} in the lowest twentieth, "
            f"{curve.predicted[-1]:.4g} in the highest; its tower has collapsed."
        )
        found.append(Alert("one_value", task, text))
    return found


def _of_judged(task: str, metrics: Metrics, number: int, num_positives: int) -> list[Alert]:
    found, score = [], f"p_{task}"
    value, num_negatives = metrics[f"{task}_auc"], number - num_positives
    if value is not None:  # of a rank sum whose scores say nothing (Mann and Whitney 1947)
        error = math.sqrt((number + 1) / (12.0 * num_positives * num_negatives))
        if error <= _LARGEST_ERROR and value < 0.5 + _NUM_ERRORS * error:
            text = f"{score} ranks no better than chance: AUC {value:.4f}, and chance alone gives 0.5 ± {error:.4f}."
            found.append(Alert("chance", task, text))
    loss, base_rate = metrics[f"{task}_log_loss"], num_positives / number
    if loss is not None and num_negatives:
        entropy = -base_rate * math.log(base_rate) - (1.0 - base_rate) * math.log1p(-base_rate)
        if loss > entropy:
            text = (
                f"{score} is worse than one probability for all: its log loss is {loss:.5f}, that of the observed rate "
                f"{base_rate:.4g} is {entropy:.5f}."
            )
            found.append(Alert("worse_than_constant", task, text))
    return found


def _odds_ratio(curve: CalibrationCurve) -> float:
    """Return the odds of the highest bin over those of the lowest."""
    low, high = float(curve.predicted[0]), float(curve.predicted[-1])
    if not 0.0 < low < 1.0 or high >= 1.0:
        return 1.0 if low == high else math.inf
    return high / (1.0 - high) / (low / (1.0 - low))
