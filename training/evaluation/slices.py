"""The figures of parts of a split: by the value of a field, by a user's purchases, by a user's activity.

ESM² Figure 7 has AUC by a user's purchases in the train split: [0,10], [11,20], [21,50], (50,∞).
"""

# Shapes: N impressions, R parts.

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from training.evaluation.metrics import Task, tasks
from training.evaluation.observed_rate import ObservedRate
from training.evaluation.ranking import auc_inside, is_finite
from training.evaluation.sorted_scores import Array, SortedScores
from training.evaluation.users import Users

#: The highest number of impressions of a user in each part but the last.
ACTIVITY = (10, 100, 1000)
#: So many parts are listed, those of most impressions; the others are one part.
MOST_LISTED = 50
OTHERS, UNKNOWN_USER = "others", "unknown user"

SlicePart = dict[str, Any]  # its value and its figures by name


class Slicing(NamedTuple):
    """A division of a split into parts."""

    name: str
    number_N: Array  # of each impression's part
    values: Sequence[str]  # of the parts, by number


def slicing_of_users(name: str, users: Users, count_of_known: Array, upper: Sequence[int]) -> Slicing:
    """Divide impressions by a count of their user; those of unknown users are a part of their own."""
    part = np.full(users.num_numbers, len(upper) + 1, np.int32)
    part[: users.num_known] = np.searchsorted(upper, count_of_known, side="left")
    lower = [0, *(bound + 1 for bound in upper)]
    names = [f"[{low},{high}]" for low, high in zip(lower, upper, strict=False)]
    return Slicing(name, part[users.number_N], [*names, f"({upper[-1]},∞)", UNKNOWN_USER])


def slicing_by_activity(users: Users) -> Slicing:
    """Divide impressions by how many their user has in the split."""
    count = np.bincount(users.number_N, minlength=users.num_numbers)
    return slicing_of_users("user_impressions", users, count[: users.num_known], ACTIVITY)


def evaluate_slices(predictions: Mapping[str, Array], slicings: Sequence[Slicing]) -> dict[str, list[SlicePart]]:
    """Return the parts of each slicing, those of most impressions first.

    A part has num_impressions, and for each task num_positives, AUC, log loss and predicted over observed; a figure that
    is undefined there is None.
    """
    click_N = predictions["click"].astype(bool)
    return {slicing.name: _parts(predictions, click_N, _of_most_impressions(slicing)) for slicing in slicings}


def _of_most_impressions(slicing: Slicing) -> Slicing:
    """Join all but the MOST_LISTED largest parts, and number the parts by their size."""
    size = np.bincount(slicing.number_N, minlength=len(slicing.values))
    order = np.argsort(-size, kind="stable")
    order = order[size[order] > 0]
    number = np.full(len(slicing.values), MOST_LISTED, np.int32)
    number[order[:MOST_LISTED]] = np.arange(min(len(order), MOST_LISTED))
    values = [slicing.values[place] for place in order[:MOST_LISTED].tolist()]
    return Slicing(slicing.name, number[slicing.number_N], [*values, *([OTHERS] if len(order) > MOST_LISTED else [])])


def _parts(predictions: Mapping[str, Array], click_N: Array, slicing: Slicing) -> list[SlicePart]:
    num_parts = len(slicing.values)
    size = np.bincount(slicing.number_N, minlength=num_parts)
    parts: list[SlicePart] = [
        {"value": value, "num_impressions": int(count)} for value, count in zip(slicing.values, size, strict=True)
    ]
    for task in tasks(predictions):
        score_N = predictions[task.score]
        if is_finite(score_N):
            _add_task(parts, task, score_N, click_N if task.clicked_only else slice(None), slicing)
    return parts


def _add_task(parts: list[SlicePart], task: Task, score_N: Array, counted_N: Array | slice, slicing: Slicing) -> None:
    scores = SortedScores.of(task.label_N[counted_N], score_N[counted_N], slicing.number_N[counted_N])
    found = scores.by_number(len(parts))
    auc = np.full(len(parts), np.nan)
    has_both, auc[has_both] = auc_inside(found)
    for number, part in enumerate(parts):
        count, positives = int(found.count[number]), int(found.positives[number])
        part[f"{task.name}_num_positives"] = positives
        part[f"{task.name}_auc"] = float(auc[number]) if has_both[number] else None
        part[f"{task.name}_log_loss"] = float(found.log_loss[number]) / count if count else None
        part[f"{task.name}_calibration"] = float(found.predicted[number]) / positives if positives else None
        part[f"{task.name}_observed_rate"] = ObservedRate(count, float(found.predicted[number]), positives).as_json()
