"""95 % intervals of the figures, and of differences between two models, with users as the units that vary.

Impressions of one user are alike, so an interval that took them for independent would be too narrow. Each figure is a smooth
function of sums over users. Its derivative gives what each user contributes, the user's influence, and the variance is
K/(K−1) · Σ influence². That is the infinitesimal jackknife: to first order the variance of a bootstrap over users, without
its draws. For AUC it is DeLong's variance, with users in the place of impressions (Obuchowski 1997). An impression of an
unknown user counts with its context.

The influences of two models on the same impressions may be subtracted, user by user: a paired test.
"""

# Shapes: K users and contexts of unknown users; arrays without a suffix have an entry for each.

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.ranking import auc_inside
from training.evaluation.sorted_scores import ByNumber

#: Quantile of the normal distribution behind a 95 % interval.
_Z = 1.959963984540054


class Estimate(NamedTuple):
    """A figure and what each user contributes to it."""

    value: float
    influence: NDArray[np.float64]  # sums to 0
    is_log: bool = False  # value and influence are of the figure's logarithm

    @property
    def standard_error(self) -> float:
        """Return the standard error; NaN for fewer than two users."""
        num = len(self.influence)
        if num < 2:
            return math.nan
        # Sorted, so that the sum does not depend on the order of users.
        squares = np.sort(self.influence * self.influence)
        return math.sqrt(num / (num - 1) * float(squares.sum()))

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the figure."""
        low, high = (self.value + sign * _Z * self.standard_error for sign in (-1, 1))
        return (math.exp(low), math.exp(high)) if self.is_log else (low, high)

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the difference of the figures of two models on the same impressions; the users are in the same order."""
        return Estimate(self.value - other.value, self.influence - other.influence, self.is_log)


def estimates_of(task: str, users: ByNumber, num_known: int) -> dict[str, Estimate]:
    """Return the figures of a task that have an interval, by name; those that are undefined are left out.

    The first `num_known` entries of `users` are known users, the ones that GAUC is a mean over.
    """
    found = {}
    present = users.count > 0
    count, positives = users.count[present], users.positives[present]
    num, num_positives = int(count.sum()), int(positives.sum())
    if num:
        loss = float(users.log_loss[present].sum()) / num
        found[f"{task}_log_loss"] = Estimate(loss, (users.log_loss[present] - loss * count) / num)
    if num_positives:
        predicted = float(users.predicted[present].sum())
        if predicted > 0:
            influence = users.predicted[present] / predicted - positives / num_positives
            found[f"{task}_calibration"] = Estimate(math.log(predicted / num_positives), influence, is_log=True)
    if 0 < num_positives < num:
        found[f"{task}_auc"] = _auc_estimate(users, present)
    gauc = _gauc_estimate(users, num_known, present)
    return found | ({f"{task}_gauc": gauc} if gauc else {})


def intervals_of(estimates: Mapping[str, Estimate]) -> dict[str, list[float]]:
    """Return name → [low, high]; figures without a standard error are left out."""
    return {name: list(found.interval) for name, found in estimates.items() if not math.isnan(found.standard_error)}


def _auc_estimate(users: ByNumber, present: NDArray[np.bool_]) -> Estimate:
    """Return AUC and its influences: those of each user's positives and of its negatives, on the pairs they are in."""
    positives = users.positives[present]
    negatives = users.count[present] - positives
    num_positives, num_negatives = int(positives.sum()), int(negatives.sum())
    wins, losses = users.twice_wins[present] / 2, users.twice_losses[present] / 2
    value = float(users.twice_wins[present].sum()) / (2 * num_positives * num_negatives)
    of_positives = (wins / num_negatives - value * positives) / num_positives
    # A negative wins the pairs that it does not lose.
    of_negatives = (losses / num_positives - value * negatives) / num_negatives
    return Estimate(value, of_positives + of_negatives)


def _gauc_estimate(users: ByNumber, num_known: int, present: NDArray[np.bool_]) -> Estimate | None:
    has_both, auc_by_user = auc_inside(users)
    counted = has_both & (np.arange(len(has_both)) < num_known)
    if not counted.any():
        return None
    auc_by_user = auc_by_user[counted[has_both]]
    value = math.fsum(auc_by_user) / len(auc_by_user)
    influence = np.zeros(len(has_both))
    influence[counted] = (auc_by_user - value) / len(auc_by_user)
    return Estimate(value, influence[present])
