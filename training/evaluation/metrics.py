"""The evaluation protocol (DESIGN §8): one flat table of numbers for a split's predictions.

    ctr     click       given an impression   all impressions
    cvr     conversion  given a click         clicked impressions only: elsewhere it is unknown
    ctavr   click and daction                 all impressions
    ctcvr   click and conversion              all impressions
    ctcvr_independent   the same, with pCTR of the independent CTR network (ESMM §3.1)

Every figure is computed over the whole split at once, never as a mean of batches. Where one is undefined (a single class,
predictions that are not finite) its value is None, null in JSON, and `reasons_undefined` says why.
`training.evaluation.ranking` and `training.evaluation.calibration` hold the arithmetic.
"""

# Shapes: N impressions.

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np

from pipeline.dataset.manifest import LABELS
from pipeline.errors import InputError
from training.evaluation.calibration import ece_of, mean_log_loss
from training.evaluation.curves import TaskCurves
from training.evaluation.exact_sums import ExactSum, sum_of
from training.evaluation.intervals import estimates_of, intervals_of
from training.evaluation.ranking import auc, expected_auc, gauc_of, is_finite
from training.evaluation.sorted_scores import Array, SortedScores
from training.evaluation.users import Users

Metrics = dict[str, float | int | None]

#: Shares of all impressions at which ESM² Tables 4 and 5 cut the list, by the name in the key.
TOP_SHARES = {"0.1pct": 0.001, "0.6pct": 0.006, "1pct": 0.01}


#: How many impressions have a p_cvr above 1, as a quotient of two networks may be.
_ABOVE_ONE = "cvr_num_above_one"
#: The figures of p_cvr over all impressions, which need the oracle.
_CVR_ALL = (
    "cvr_all_log_loss",
    "true_cvr_all_log_loss",
    "cvr_all_bias",
    "cvr_all_auc",
    "true_cvr_all_auc",
    "cvr_all_auc_share",
)


_TENTHS = 10
#: The figures of GAUC; a group is a user.
_GAUC = ("gauc", "gauc_weighted", "gauc_groups", "gauc_groups_left_out")


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
    every.append(Task("ctcvr_independent", converted_N, "p_ctcvr_independent"))
    return (task for task in every if task.score in predictions)


class Evaluation(NamedTuple):
    """What an evaluation comes to."""

    metrics: Metrics
    curves: dict[str, TaskCurves]  # by task; without those whose predictions are not finite
    intervals: dict[str, list[float]]  # 95 %: name → [low, high]; needs group_id
    users: Users | None = None


def evaluate(predictions: Mapping[str, Array]) -> Metrics:
    """Compute every figure that `predictions` allows, by name.

    Columns, each of shape [N]: click, conversion, optionally daction (0 or 1); group_id (int64, UNKNOWN_GROUP where unknown; GAUC
    needs it); and any of p_ctr, p_cvr, p_ctavr, p_ctcvr in [0, 1]. A column that is not there leaves its figures out. A p_cvr that is
    a quotient may be above 1: those impressions are counted, and the log loss takes them as 1.
    """
    return evaluate_with_curves(predictions).metrics


def evaluate_with_curves(
    predictions: Mapping[str, Array],
    truth: Mapping[str, Array] | None = None,
    num_threads: int = 1,
    contexts: Callable[[], Array] | None = None,
) -> Evaluation:
    """Compute every figure of `evaluate`, and those of `oracle_metrics` where `truth` is given, with intervals and curves.

    `contexts` returns a number for each impression's context; see `Users`.

    A column is asked for when it is needed and not kept, so `predictions` may read it from files: a task takes 20 bytes an
    impression while it is evaluated. `num_threads` tasks are evaluated at a time.
    """
    click_N = predictions["click"].astype(bool)
    metrics: Metrics = {"num_impressions": len(click_N), "num_clicks": int(click_N.sum())}
    metrics["num_conversions"] = int((click_N & predictions["conversion"].astype(bool)).sum())
    if "daction" in predictions:
        metrics["num_dactions"] = int((click_N & predictions["daction"].astype(bool)).sum())
    users = None
    if "group_id" in predictions:
        users = Users.of(predictions["group_id"], contexts)
        metrics["num_impressions_without_group"] = users.num_unknown
    true = true_probabilities(predictions, truth) if truth is not None else None

    def evaluate_one(task: Task) -> Evaluation:
        return _evaluate_task(task, click_N, users, predictions, true)

    with ThreadPoolExecutor(num_threads, "metrics") as threads:
        of_tasks = list(threads.map(evaluate_one, tasks(predictions)))
    curves: dict[str, TaskCurves] = {}
    intervals: dict[str, list[float]] = {}
    for found in of_tasks:
        metrics |= found.metrics
        curves |= found.curves
        intervals |= found.intervals
    if true is not None:
        metrics |= _oracle_metrics(predictions, true, metrics)
    return Evaluation(metrics, curves, intervals, users)


def _evaluate_task(
    task: Task,
    click_N: Array,
    users: Users | None,
    predictions: Mapping[str, Array],
    true: Mapping[str, Array] | None,
) -> Evaluation:
    label_N, score_N = task.label_N, predictions[task.score]
    if not is_finite(score_N):
        undefined = _figures_of(task.name, SortedScores.of(label_N[:0], score_N[:0]))
        if users is not None:
            undefined |= {f"{task.name}_{name}": None for name in _GAUC}
        return Evaluation(undefined | (dict.fromkeys([_ABOVE_ONE]) if task.name == "cvr" else {}), {}, {})
    above_one = {_ABOVE_ONE: int(np.count_nonzero(score_N > 1.0))} if task.name == "cvr" else {}
    counted_N = click_N if task.clicked_only else slice(None)
    label_N, score_N = label_N[counted_N], score_N[counted_N]
    metrics, curves = _metrics_and_curves(task, label_N, score_N, true, counted_N)
    metrics |= above_one
    if users is None:
        return Evaluation(metrics, {task.name: curves}, {})
    scores = SortedScores.of(label_N, score_N, users.number_N[counted_N])
    del score_N
    by_user = scores.by_number(users.num_numbers)
    found = gauc_of(by_user, users.num_known)
    figures = (found.gauc, found.weighted, found.num_groups, found.num_groups_left_out)
    metrics |= {f"{task.name}_{name}": value for name, value in zip(_GAUC, figures, strict=True)}
    return Evaluation(metrics, {task.name: curves}, intervals_of(estimates_of(task.name, by_user, users.num_known)))


def _metrics_and_curves(
    task: Task, label_N: Array, score_N: Array, true: Mapping[str, Array] | None, counted_N: Array | slice
) -> tuple[Metrics, TaskCurves]:
    scores = SortedScores.of(label_N, score_N)
    metrics, curves = _figures_of(task.name, scores), TaskCurves.of(scores)
    if true is not None and task.score in true:
        del scores
        oracle_roc = SortedScores.of(label_N, true[task.score][counted_N]).roc_curve()
        curves = replace(curves, oracle_roc=oracle_roc)
    return metrics, curves


def reasons_undefined(metrics: Metrics, predictions: Mapping[str, Array]) -> dict[str, str]:
    """Return why each figure of `metrics` that is None is undefined, by its name."""
    if None not in metrics.values():
        return {}
    of_task = {task.name: _reason(task, predictions) for task in tasks(predictions)}
    if "p_cvr" in predictions:  # cvr_all is over clicked impressions and others
        of_task["cvr_all"] = _reason_of_scores("p_cvr", predictions["p_cvr"])
    reasons = {}
    for name in (name for name, value in metrics.items() if value is None):
        bare = name.removeprefix("true_")
        reason = next((of_task[task] for task in sorted(of_task, key=len, reverse=True) if bare.startswith(task)), "")
        if name.endswith(("_gauc", "_gauc_weighted")):
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


def _figures_of(name: str, scores: SortedScores) -> Metrics:
    log_loss, predicted = scores.sums()
    metrics: Metrics = {
        f"{name}_auc": scores.auc(),
        f"{name}_log_loss": log_loss.over(len(scores)) if len(scores) else None,
        f"{name}_calibration": predicted.over(scores.num_positives) if scores.num_positives else None,
        f"{name}_ece": ece_of(scores),
    }
    if name == "cvr" or name.startswith("ctcvr"):
        for suffix, share in TOP_SHARES.items():
            top = scores.top(share)
            metrics[f"{name}_recall_top_{suffix}"] = top.recall if top else None
            metrics[f"{name}_precision_top_{suffix}"] = top.precision if top else None
            metrics[f"{name}_f1_top_{suffix}"] = top.f1 if top else None
    return metrics


class _TrueColumns(Mapping[str, Array]):
    """The oracle's columns, named as the predictions are; each is made when it is asked for."""

    def __init__(self, columns: Mapping[str, Array], row_N: Array | slice) -> None:
        self._columns, self._row_N = columns, row_N
        self._names = ["p_ctr", "p_cvr", "p_ctcvr", *(["p_ctavr"] if "p_daction" in columns else [])]

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        factor = {"p_ctcvr": "p_cvr", "p_ctavr": "p_daction"}.get(name)
        if factor is None:
            return self._columns[name][self._row_N]
        return self._columns["p_ctr"][self._row_N] * self._columns[factor][self._row_N]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def true_probabilities(predictions: Mapping[str, Array], truth: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the oracle's columns in the order of `predictions`, named as theirs are: p_ctr, p_cvr, p_ctcvr, p_ctavr.

    Rows are matched by impression_id where both have it; otherwise both are in the same order. `truth` holds p_ctr,
    p_cvr (given a click) and optionally p_daction (given a click). Raises InputError for an impression that `truth` lacks.
    """
    if "impression_id" not in truth or "impression_id" not in predictions:
        return _TrueColumns(truth, slice(None))
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
    return _TrueColumns(truth, row_N)


def oracle_metrics(predictions: Mapping[str, Array], truth: Mapping[str, Array]) -> Metrics:
    """Measure how near `predictions` come to the true probabilities that a simulated log's labels were drawn from.

    Per task, true_<task>_auc is the AUC of the true probabilities against the realised labels, the ceiling that only luck
    exceeds, and <task>_auc_share = (AUC − 0.5) / (true AUC − 0.5). cvr_all_* compare p_cvr over all impressions, clicked
    or not, with the true p_cvr: cross entropy, bias (mean p_cvr − mean true p_cvr), expected AUC. true_cvr_all_* are the
    same figures of the true p_cvr itself.
    """
    return _oracle_metrics(predictions, true_probabilities(predictions, truth), {})


def _oracle_metrics(predictions: Mapping[str, Array], true: Mapping[str, Array], known: Metrics) -> Metrics:
    """Compute `oracle_metrics`; `known` may hold the AUCs of `predictions`."""
    click_N = predictions["click"].astype(bool)
    metrics: Metrics = {}
    labels = {name: predictions[name] for name in LABELS if name in predictions}
    for task in tasks(ChainMap(labels, cast(MutableMapping[str, Array], true))):  # which is only read
        counted_N = click_N if task.clicked_only else slice(None)
        label_N = task.label_N[counted_N]
        ceiling = auc(label_N, true[task.score][counted_N])
        metrics[f"true_{task.name}_auc"] = ceiling
        if task.score in predictions:
            reached = known.get(f"{task.name}_auc")
            if f"{task.name}_auc" not in known and is_finite(predictions[task.score]):
                reached = auc(label_N, predictions[task.score][counted_N])
            metrics[f"{task.name}_auc_share"] = _share(reached, ceiling)
    return metrics | _cvr_over_all(predictions, true) if "p_cvr" in predictions else metrics


def _cvr_over_all(predictions: Mapping[str, Array], true: Mapping[str, Array]) -> Metrics:
    """Compare p_cvr over all impressions, clicked or not, with the true p_cvr."""
    p_cvr_N = predictions["p_cvr"]
    if len(p_cvr_N) == 0 or not is_finite(p_cvr_N):
        return dict.fromkeys(_CVR_ALL)
    true_cvr_N = true["p_cvr"]
    bias = ExactSum(sum_of(p_cvr_N).units - sum_of(true_cvr_N).units)
    metrics: Metrics = {
        "cvr_all_log_loss": mean_log_loss(true_cvr_N, p_cvr_N),
        "true_cvr_all_log_loss": mean_log_loss(true_cvr_N, true_cvr_N),
        "cvr_all_bias": bias.over(len(p_cvr_N)),
        "cvr_all_auc": expected_auc(true_cvr_N, p_cvr_N),
    }
    metrics["true_cvr_all_auc"] = expected_auc(true_cvr_N, true_cvr_N)
    metrics["cvr_all_auc_share"] = _share(metrics["cvr_all_auc"], metrics["true_cvr_all_auc"])
    return metrics


def cvr_by_click_propensity(predictions: Mapping[str, Array], truth: Mapping[str, Array]) -> list[Metrics]:
    """Compare p_cvr with the true p_cvr in tenths of the impressions by their true p_ctr, the lowest first.

    A model that learns from clicks alone sees the last tenths more often than the first: sample selection bias (ESMM §1).
    Each tenth has the mean of the true p_ctr, of the true p_cvr and of p_cvr, their quotient (calibration), the log loss
    against the true p_cvr with its least possible value, and the expected AUC with that of the true p_cvr.
    """
    true = true_probabilities(predictions, truth)
    if "p_cvr" not in predictions or not is_finite(predictions["p_cvr"]):
        return []
    p_cvr_N, true_cvr_N, true_ctr_N = predictions["p_cvr"], true["p_cvr"], true["p_ctr"]
    places = -(-np.arange(1, _TENTHS) * len(true_ctr_N) // _TENTHS) - 1
    edges = np.unique(np.sort(true_ctr_N)[places]) if len(true_ctr_N) else true_ctr_N
    tenth_N = np.searchsorted(edges, true_ctr_N, side="left").astype(np.int8)
    found = []
    for tenth in range(len(edges) + 1):
        rows = np.flatnonzero(tenth_N == tenth)
        if not len(rows):
            continue
        p_cvr, true_cvr = p_cvr_N[rows], true_cvr_N[rows]
        mean, true_mean = sum_of(p_cvr).over(len(rows)), sum_of(true_cvr).over(len(rows))
        found.append(
            {
                "num_impressions": len(rows),
                "true_ctr": sum_of(true_ctr_N[rows]).over(len(rows)),
                "true_cvr": true_mean,
                "predicted_cvr": mean,
                "calibration": mean / true_mean if true_mean else None,
                "log_loss": mean_log_loss(true_cvr, p_cvr),
                "true_log_loss": mean_log_loss(true_cvr, true_cvr),
                "auc": expected_auc(true_cvr, p_cvr),
                "true_auc": expected_auc(true_cvr, true_cvr),
            }
        )
    return found


def _share(reached: float | None, ceiling: float | None) -> float | None:
    if reached is None or ceiling is None or ceiling == 0.5:
        return None
    return (reached - 0.5) / (ceiling - 0.5)
