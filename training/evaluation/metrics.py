"""The evaluation protocol (DESIGN §8): one flat table of numbers for a split's predictions.

    ctr     click       given an impression   all impressions
    cvr     conversion  given a click         clicked impressions only: elsewhere it is unknown
    ctavr   click and daction                 all impressions
    ctcvr   click and conversion              all impressions

Every figure is computed over the whole split at once, never as a mean of batches. Where one is undefined (a single class,
predictions that are not finite) its value is None, null in JSON, and `reasons_undefined` says why.
`training.evaluation.ranking` and `training.evaluation.calibration` hold the arithmetic.
"""

# Shapes: N impressions.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.manifest import LABELS
from pipeline.errors import InputError
from training.evaluation.calibration import calibration, expected_calibration_error, mean_log_loss
from training.evaluation.ranking import Array, auc, expected_auc, group_numbers, grouped_auc, is_finite, top_share
from training.feed.batch import UNKNOWN_GROUP

Metrics = dict[str, float | int | None]

#: Shares of all impressions at which ESM² Tables 4 and 5 cut the list, by the name in the key.
TOP_SHARES = {"0.1pct": 0.001, "0.6pct": 0.006, "1pct": 0.01}


#: The figures of p_cvr over all impressions, which need the oracle.
_CVR_ALL = (
    "cvr_all_log_loss",
    "true_cvr_all_log_loss",
    "cvr_all_bias",
    "cvr_all_auc",
    "true_cvr_all_auc",
    "cvr_all_auc_share",
)


@dataclass(frozen=True)
class Task:
    """One question asked of the predictions: did the label follow, over the impressions that can tell?"""

    name: str
    label_N: Array
    score: str  # the column that answers it
    clicked_only: bool = False


def tasks(predictions: Mapping[str, Array]) -> Iterator[Task]:
    """Yield the tasks that `predictions` can be evaluated on: those with both their labels and their column."""
    click_N = predictions["click"].astype(bool)
    converted_N = click_N & predictions["conversion"].astype(bool)
    every = [Task("ctr", click_N, "p_ctr"), Task("cvr", converted_N, "p_cvr", clicked_only=True)]
    if "daction" in predictions:
        every.append(Task("ctavr", click_N & predictions["daction"].astype(bool), "p_ctavr"))
    every.append(Task("ctcvr", converted_N, "p_ctcvr"))
    return (task for task in every if task.score in predictions)


def evaluate(predictions: Mapping[str, Array]) -> Metrics:
    """Compute every figure that `predictions` allows, by name.

    Columns, each of shape [N]: click, conversion, optionally daction (0 or 1); group_id (int64, UNKNOWN_GROUP where unknown; GAUC
    needs it); and any of p_ctr, p_cvr, p_ctavr, p_ctcvr in [0, 1]. A column that is not there leaves its figures out.
    """
    click_N = predictions["click"].astype(bool)
    metrics: Metrics = {"num_impressions": len(click_N), "num_clicks": int(click_N.sum())}
    metrics["num_conversions"] = int((click_N & predictions["conversion"].astype(bool)).sum())
    if "daction" in predictions:
        metrics["num_dactions"] = int((click_N & predictions["daction"].astype(bool)).sum())
    group_N, known_N = None, np.empty(0, bool)
    if "group_id" in predictions:
        group_N, known_N = group_numbers(predictions["group_id"]), predictions["group_id"] != UNKNOWN_GROUP
        metrics["num_impressions_without_group"] = len(known_N) - int(known_N.sum())
    for task in tasks(predictions):
        label, score = task.label_N, predictions[task.score]
        counted_N = click_N if task.clicked_only else slice(None)
        if not is_finite(score):
            metrics |= dict.fromkeys(_ranking_and_calibration(task.name, label[:0], score[:0]))
            if group_N is not None:
                metrics |= {f"{task.name}_{name}": None for name in ("gauc", "gauc_groups", "gauc_groups_left_out")}
            continue
        metrics |= _ranking_and_calibration(task.name, label[counted_N], score[counted_N])
        if group_N is not None:
            kept_N = known_N & click_N if task.clicked_only else known_N
            # Mostly every group is known, and then a copy of every column is saved.
            rows = slice(None) if kept_N.all() else kept_N
            grouped = grouped_auc(group_N[rows], label[rows], score[rows])
            metrics[f"{task.name}_gauc"] = grouped.gauc
            metrics[f"{task.name}_gauc_groups"] = grouped.num_groups
            metrics[f"{task.name}_gauc_groups_left_out"] = grouped.num_groups_left_out
    return metrics


def reasons_undefined(metrics: Metrics, predictions: Mapping[str, Array]) -> dict[str, str]:
    """Return why each figure of `metrics` that is None is undefined, by its name."""
    of_task = {task.name: _reason(task, predictions) for task in tasks(predictions)}
    if "p_cvr" in predictions:  # cvr_all is over clicked impressions and others
        of_task["cvr_all"] = _reason_of_scores("p_cvr", predictions["p_cvr"])
    reasons = {}
    for name in (name for name, value in metrics.items() if value is None):
        bare = name.removeprefix("true_")
        reason = next((of_task[task] for task in sorted(of_task, key=len, reverse=True) if bare.startswith(task)), "")
        if name.endswith("_gauc"):
            reason = reason or "no user has both classes"
        reasons[name] = reason or "the oracle's AUC is undefined or one half"
    return reasons


def _reason(task: Task, predictions: Mapping[str, Array]) -> str:
    """Return why a figure of `task` may be undefined; "" where none is."""
    if reason := _reason_of_scores(task.score, predictions[task.score]):
        return reason
    rows = predictions["click"].astype(bool) if task.clicked_only else slice(None)
    label_N, unit = task.label_N[rows], "clicked impressions" if task.clicked_only else "impressions"
    if len(label_N) == 0:
        return f"the split has no {unit}"
    num_positives = int(np.count_nonzero(label_N))
    if num_positives == 0:
        return f"none of {len(label_N)} {unit} is a positive"
    return f"all {len(label_N)} {unit} are positives" if num_positives == len(label_N) else ""


def _reason_of_scores(name: str, score_N: Array) -> str:
    num_bad = len(score_N) - int(np.count_nonzero(np.isfinite(score_N)))
    if num_bad:
        return f"{name} is NaN or infinite for {num_bad} of {len(score_N)} impressions"
    return "" if len(score_N) else "the split has no impressions"


def _ranking_and_calibration(name: str, label_N: Array, score_N: Array) -> Metrics:
    ascending_N = np.sort(score_N)
    metrics: Metrics = {
        f"{name}_auc": auc(label_N, score_N, ascending_N),
        f"{name}_log_loss": mean_log_loss(label_N, score_N),
        f"{name}_calibration": calibration(label_N, score_N),
        f"{name}_ece": expected_calibration_error(label_N, score_N, ascending_N),
    }
    if name == "ctcvr":
        for suffix, share in TOP_SHARES.items():
            top = top_share(label_N, score_N, share, ascending_N)
            metrics[f"ctcvr_recall_top_{suffix}"] = top.recall if top else None
            metrics[f"ctcvr_precision_top_{suffix}"] = top.precision if top else None
            metrics[f"ctcvr_f1_top_{suffix}"] = top.f1 if top else None
    return metrics


def true_probabilities(predictions: Mapping[str, Array], truth: Mapping[str, Array]) -> dict[str, Array]:
    """Return the oracle's columns in the order of `predictions`, named as theirs are: p_ctr, p_cvr, p_ctcvr, p_ctavr.

    Rows are matched by impression_id where both have it; otherwise both are in the same order. `truth` holds p_ctr,
    p_cvr (given a click) and optionally p_daction (given a click). Raises InputError for an impression that `truth` lacks.
    """
    names = [name for name in ("p_ctr", "p_cvr", "p_daction") if name in truth]
    if "impression_id" in truth and "impression_id" in predictions:
        order = np.argsort(truth["impression_id"])
        wanted_N = predictions["impression_id"]
        place_N = np.searchsorted(truth["impression_id"], wanted_N, sorter=order)
        row_N = order[np.minimum(place_N, len(order) - 1)] if len(order) else place_N
        missing_N = truth["impression_id"][row_N] != wanted_N if len(order) else np.ones(len(wanted_N), bool)
        if missing_N.any():
            raise InputError(
                f"The truth lacks {int(missing_N.sum())} of {len(wanted_N)} impressions, the first being impression_id="
                f"{wanted_N[missing_N.argmax()]}; give the truth file of the same log and split."
            )
        aligned = {name: truth[name][row_N] for name in names}
    else:
        assert len(truth["p_ctr"]) == len(predictions["click"]), "truth and predictions differ in length"
        aligned = {name: truth[name] for name in names}
    aligned["p_ctcvr"] = aligned["p_ctr"] * aligned["p_cvr"]
    if "p_daction" in aligned:
        aligned["p_ctavr"] = aligned["p_ctr"] * aligned.pop("p_daction")
    return aligned


def oracle_metrics(predictions: Mapping[str, Array], truth: Mapping[str, Array]) -> Metrics:
    """Measure how near `predictions` come to the true probabilities that a simulated log's labels were drawn from.

    Per task, true_<task>_auc is the AUC of the true probabilities against the realised labels, the ceiling that only luck
    exceeds, and <task>_auc_share = (AUC − 0.5) / (true AUC − 0.5). cvr_all_* compare p_cvr over all impressions, clicked
    or not, with the true p_cvr: cross entropy, bias (mean p_cvr − mean true p_cvr), expected AUC. true_cvr_all_* are the
    same figures of the true p_cvr itself.
    """
    true = true_probabilities(predictions, truth)
    click_N = predictions["click"].astype(bool)
    metrics: Metrics = {}
    labels = {name: predictions[name] for name in LABELS if name in predictions}
    for task in tasks({**labels, **true}):
        counted_N = click_N if task.clicked_only else slice(None)
        ceiling = auc(task.label_N[counted_N], true[task.score][counted_N])
        metrics[f"true_{task.name}_auc"] = ceiling
        if task.score in predictions and not is_finite(predictions[task.score]):
            metrics[f"{task.name}_auc_share"] = None
        elif task.score in predictions:
            reached = auc(task.label_N[counted_N], predictions[task.score][counted_N])
            metrics[f"{task.name}_auc_share"] = _share(reached, ceiling)
    if "p_cvr" in predictions:
        true_cvr_N, p_cvr_N = true["p_cvr"], predictions["p_cvr"]
        if len(p_cvr_N) == 0 or not is_finite(p_cvr_N):
            return metrics | dict.fromkeys(_CVR_ALL)
        metrics["cvr_all_log_loss"] = mean_log_loss(true_cvr_N, p_cvr_N)
        metrics["true_cvr_all_log_loss"] = mean_log_loss(true_cvr_N, true_cvr_N)
        metrics["cvr_all_bias"] = float(p_cvr_N.mean(dtype=np.float64) - true_cvr_N.mean(dtype=np.float64))
        metrics["cvr_all_auc"] = expected_auc(true_cvr_N, p_cvr_N)
        metrics["true_cvr_all_auc"] = expected_auc(true_cvr_N, true_cvr_N)
        metrics["cvr_all_auc_share"] = _share(metrics["cvr_all_auc"], metrics["true_cvr_all_auc"])
    return metrics


def _share(reached: float | None, ceiling: float | None) -> float | None:
    if reached is None or ceiling is None or ceiling == 0.5:
        return None
    return (reached - 0.5) / (ceiling - 0.5)
