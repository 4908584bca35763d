"""How well scores rank: exact AUC, GAUC by user, expected AUC under known probabilities, ROC curves, precision at the top.

Everything sorts and then searches, and nothing keeps an index per impression, so that 43 million test impressions cost one
sorted copy of their scores. Equal scores count one half throughout: the order of rows never matters.
"""

# Shapes: N impressions. Arrays without a suffix have an entry for each group, positive or distinct score, as named.

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]  # any dtype: labels are int8 or bool, scores float32 or float64


def is_finite(values: Array) -> bool:
    """Tell whether `values` holds no NaN or infinity, which cannot be ranked."""
    # A sum is finite only if every term is, and takes no array of booleans.
    return math.isfinite(float(values.sum(dtype=np.float64)))


def auc(label_N: Array, score_N: Array, ascending_N: Array | None = None) -> float | None:
    """Return the probability that a positive scores above a negative, ties counting one half; None without both classes.

    From integer rank sums (Mann–Whitney), so exact to the last bit of the final division. `ascending_N` is the sorted
    score, where the caller has it already.
    """
    positive_scores = np.sort(score_N[label_N.astype(bool, copy=False)])
    num_positives, num_negatives = len(positive_scores), len(score_N) - len(positive_scores)
    if num_positives == 0 or num_negatives == 0:
        return None
    ascending_N = np.sort(score_N) if ascending_N is None else ascending_N
    below = int(np.searchsorted(ascending_N, positive_scores, side="left").sum())
    not_above = int(np.searchsorted(ascending_N, positive_scores, side="right").sum())
    # Twice the sum of mid-ranks is below + not_above + P; the positives among themselves take P * (P + 1) of it.
    twice_wins = below + not_above - num_positives * num_positives
    return twice_wins / (2 * num_positives * num_negatives)


@dataclass(frozen=True)
class GroupedAuc:
    """GAUC and how many groups it rests on."""

    gauc: float | None  # None where no group has both classes
    num_groups: int  # groups with both classes
    num_groups_left_out: int  # groups with one class


def grouped_auc(group_N: Array, label_N: Array, score_N: Array) -> GroupedAuc:
    """Average over groups the AUC inside the group, each with weight 1 (ESM² eq. 13); ties count one half.

    `group_N` holds group numbers in [0, 2³²), as from `group_numbers`. Groups without both classes are left out.
    """
    label_N = label_N.astype(bool, copy=False)
    positives = np.bincount(group_N[label_N])
    sizes = np.bincount(group_N, minlength=len(positives))
    positives = np.pad(positives, (0, len(sizes) - len(positives)))
    negatives = sizes - positives
    has_both = (positives > 0) & (negatives > 0)
    num_groups, num_present = int(has_both.sum()), int((sizes > 0).sum())
    if num_groups == 0:
        return GroupedAuc(None, 0, num_present)

    # One unsigned number orders by group, then by score: the group above, 32 bits that sort as the score does below.
    kept_N = has_both[group_N]
    label_N, group_N = label_N[kept_N], group_N[kept_N]
    key_N = group_N.astype(np.uint64)
    key_N <<= np.uint64(32)
    key_N |= _order_preserving(score_N[kept_N])
    positive_keys = np.sort(key_N[label_N])
    key_N.sort()

    below = np.searchsorted(key_N, positive_keys, side="left")
    not_above = np.searchsorted(key_N, positive_keys, side="right")
    group_of_positive = (positive_keys >> np.uint64(32)).astype(np.intp)
    kept_sizes = np.where(has_both, sizes, 0)
    starts = np.cumsum(kept_sizes) - kept_sizes
    twice_rank = below + not_above - 2 * starts[group_of_positive]
    # Sums of integers far below 2⁵³ are exact in float64, which is all that bincount offers.
    twice_wins = (
        np.bincount(group_of_positive, weights=twice_rank, minlength=len(sizes))[has_both] - positives[has_both] ** 2
    )
    auc_by_group = twice_wins / (2 * positives[has_both] * negatives[has_both])
    return GroupedAuc(float(auc_by_group.mean()), num_groups, num_present - num_groups)


def _order_preserving(score_N: Array) -> NDArray[np.uint32]:
    """Return unsigned 32-bit numbers that compare as the scores do: the bits of a float32, or the dense rank of another type."""
    if score_N.dtype != np.float32:
        return np.unique(score_N, return_inverse=True)[1].astype(np.uint32)
    bits_N = (score_N + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0, which has other bits
    sign_N = bits_N >> np.uint32(31)
    # Negative floats sort backwards by their bits, so all of these flip; of the others only the sign bit does.
    return bits_N ^ np.where(sign_N, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def group_numbers(group_id_N: Array) -> NDArray[np.int32]:
    """Number the distinct values of `group_id_N` from 0 in order of appearance (a hash table, so no sort)."""
    return pa.array(group_id_N).dictionary_encode().indices.to_numpy()


def expected_auc(probability_N: Array, score_N: Array) -> float | None:
    """Return the AUC of `score_N` where each impression is a positive of weight p and a negative of weight 1 − p.

    It is the AUC expected of labels drawn from the true probabilities, up to the pairing of an impression with itself
    (one half, of N² pairs). Exact and O(N log N); None where all probabilities are 0 or all are 1.
    """
    order_N = np.argsort(score_N)
    positive_N = probability_N[order_N].astype(np.float64)
    score_N = score_N[order_N]
    first_N = np.flatnonzero(np.concatenate(([True], score_N[1:] != score_N[:-1])))
    positive_by_score = np.add.reduceat(positive_N, first_N)  # by distinct score
    negative_by_score = np.add.reduceat(1.0 - positive_N, first_N)
    positives, negatives = float(positive_by_score.sum()), float(negative_by_score.sum())
    if positives <= 0.0 or negatives <= 0.0:
        return None
    below_by_score = np.cumsum(negative_by_score) - negative_by_score
    return float(np.dot(positive_by_score, below_by_score + 0.5 * negative_by_score)) / (positives * negatives)


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve from (0, 0) to (1, 1)."""

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]


def roc_curve(label: Array, score: Array, max_points: int = 200) -> RocCurve | None:
    """Return at most `max_points` exact points of the ROC curve, evenly spread over both classes; None without both."""
    label = label.astype(bool, copy=False)
    positive_scores, negative_scores = np.sort(score[label]), np.sort(score[~label])
    if len(positive_scores) == 0 or len(negative_scores) == 0:
        return None
    room = (max_points - 2) // 2
    thresholds = np.unique(np.concatenate([_spread(positive_scores, room), _spread(negative_scores, room)]))[::-1]
    true_positive_rate = 1.0 - np.searchsorted(positive_scores, thresholds, side="left") / len(positive_scores)
    false_positive_rate = 1.0 - np.searchsorted(negative_scores, thresholds, side="left") / len(negative_scores)
    return RocCurve(
        np.concatenate(([0.0], false_positive_rate, [1.0])), np.concatenate(([0.0], true_positive_rate, [1.0]))
    )


def _spread(ascending: Array, count: int) -> Array:
    """Return at most `count` values of `ascending`, at even distances in rank, both ends included."""
    distinct = np.unique(ascending)
    if len(distinct) <= count:
        return distinct
    return ascending[np.linspace(0, len(ascending) - 1, count).round().astype(np.intp)]


@dataclass(frozen=True)
class TopShare:
    """Retrieval at the top of the list."""

    recall: float
    precision: float
    f1: float


def top_share(label_N: Array, score_N: Array, share: float, ascending_N: Array | None = None) -> TopShare | None:
    """Return recall, precision and F1 when the `share` of impressions that score highest is taken (ESM² Tables 4 and 5).

    Where equal scores straddle the cut, the positives among them count by the share of them that is taken: the mean over
    all orders of the tie. None without both classes.
    """
    label_N = label_N.astype(bool, copy=False)
    num_positives = int(np.count_nonzero(label_N))
    if num_positives == 0 or num_positives == len(label_N):
        return None
    ascending_N = np.sort(score_N) if ascending_N is None else ascending_N
    num_taken = max(1, round(share * len(score_N)))
    cut = ascending_N[len(ascending_N) - num_taken]
    num_above = len(ascending_N) - int(np.searchsorted(ascending_N, cut, side="right"))
    num_tied = len(ascending_N) - num_above - int(np.searchsorted(ascending_N, cut, side="left"))
    positive_scores = score_N[label_N]
    hits_above = int(np.count_nonzero(positive_scores > cut))
    hits_tied = int(np.count_nonzero(positive_scores == cut))
    hits = hits_above + hits_tied * (num_taken - num_above) / num_tied
    return TopShare(hits / num_positives, hits / num_taken, 2 * hits / (num_taken + num_positives))
