"""How well scores rank: exact AUC, GAUC by user, expected AUC under known probabilities, ROC curves, precision at the top.

Equal scores count one half throughout: the order of rows never matters. The arithmetic is that of
`training.evaluation.sorted_scores`; these functions take the columns themselves.
"""

# Shapes: N impressions. Arrays without a suffix have an entry for each group or distinct score, as named.

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.jit import nb
from training.evaluation.sorted_scores import Array, ByNumber, RocCurve, SortedScores, TopShare, bits_of

_PIECE = 1 << 20


def is_finite(values: Array) -> bool:
    """Tell whether `values` holds no NaN or infinity, which cannot be ranked."""
    # A sum is finite only if every term is, and takes no array of booleans.
    return math.isfinite(float(values.sum(dtype=np.float64)))


def auc(label_N: Array, score_N: Array) -> float | None:
    """Return the probability that a positive scores above a negative, ties counting one half; None without both classes.

    From integer rank sums (Mann–Whitney), so exact to the last bit of the final division.
    """
    return SortedScores.of(label_N, score_N).auc()


@dataclass(frozen=True)
class GroupedAuc:
    """GAUC and how many groups it rests on."""

    gauc: float | None  # every group has weight 1; None where no group has both classes
    weighted: float | None  # a group has its number of impressions as weight
    num_groups: int  # groups with both classes
    num_groups_left_out: int  # groups with one class


def grouped_auc(group_N: Array, label_N: Array, score_N: Array) -> GroupedAuc:
    """Average over groups the AUC inside the group (ESM² eq. 13); ties count one half.

    `group_N` holds group numbers in [0, 2³²), as from `group_numbers`. Groups without both classes are left out.
    """
    if len(group_N) == 0:
        return GroupedAuc(None, None, 0, 0)
    num_groups = int(group_N.max()) + 1
    return gauc_of(SortedScores.of(label_N, score_N, group_N).by_number(num_groups), num_groups)


def gauc_of(groups: ByNumber, num_known: int) -> GroupedAuc:
    """Return the mean of the AUCs of the first `num_known` groups, rounded once, so in any order of the groups."""
    has_both, auc_by_group = auc_inside(groups)
    auc_by_group = auc_by_group[: int(has_both[:num_known].sum())]
    has_both[num_known:] = False
    num_present, num_groups = int((groups.count[:num_known] > 0).sum()), int(has_both.sum())
    if num_groups == 0:
        return GroupedAuc(None, None, 0, num_present)
    size = groups.count[has_both]
    weighted = math.fsum(size * auc_by_group) / int(size.sum())
    return GroupedAuc(math.fsum(auc_by_group) / num_groups, weighted, num_groups, num_present - num_groups)


def auc_inside(groups: ByNumber) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which groups have both classes, and the AUC inside each of these."""
    positives, negatives = groups.positives, groups.count - groups.positives
    has_both = (positives > 0) & (negatives > 0)
    return has_both, groups.twice_wins_inside[has_both] / (2 * positives[has_both] * negatives[has_both])


def group_numbers(group_id_N: Array) -> NDArray[np.int32]:
    """Number the distinct values of `group_id_N` from 0 in ascending order."""
    return number_values(pieces_of(group_id_N))[0]


def number_values(pieces: Iterable[Array]) -> tuple[NDArray[np.int32], Array]:
    """Return the number of each value among the distinct ones in ascending order, and the distinct ones.

    A piece is numbered by itself (a hash table), so nothing but the numbers is as long as the pieces together.
    """
    found = [pa.array(piece).dictionary_encode() for piece in pieces]
    if not found:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    dictionaries = [piece.dictionary.to_numpy(zero_copy_only=False) for piece in found]
    distinct = np.unique(np.concatenate(dictionaries))
    number_N = np.empty(sum(map(len, found)), np.int32)
    start = 0
    for piece, dictionary in zip(found, dictionaries, strict=True):
        place = np.searchsorted(distinct, dictionary).astype(np.int32)
        number_N[start : start + len(piece)] = place[piece.indices.to_numpy()]
        start += len(piece)
    return number_N, distinct


def pieces_of(column_N: Array) -> Iterator[Array]:
    """Cut a column into pieces of a million rows."""
    return (column_N[start : start + _PIECE] for start in range(0, len(column_N), _PIECE))


def expected_auc(probability_N: Array, score_N: Array) -> float | None:
    """Return the AUC of `score_N` where each impression is a positive of weight p and a negative of weight 1 − p.

    It is the AUC expected of labels drawn from the true probabilities, up to the pairing of an impression with itself
    (one half, of N² pairs). Exact and O(N log N); None where all probabilities are 0 or all are 1.
    """
    fits = probability_N.dtype == score_N.dtype == np.float32
    if fits and len(score_N) and min(score_N.min(), probability_N.min()) >= 0:
        key_N = np.empty(len(score_N), np.uint64)
        _pack_pair(bits_of(score_N), bits_of(probability_N), key_N)
        key_N.sort()
        wins, positives, negatives = _expected_of_keys(key_N)
    else:
        order_N = np.lexsort((probability_N, score_N))
        wins, positives, negatives = _expected_wins(score_N[order_N], probability_N[order_N].astype(np.float64))
    return wins / (positives * negatives) if positives > 0.0 and negatives > 0.0 else None


@nb.njit(nogil=True, cache=True)
def _pack_pair(score_N: Any, probability_N: Any, key_N: Any) -> None:
    for row in range(len(key_N)):
        key_N[row] = (np.uint64(score_N[row]) << np.uint64(32)) | np.uint64(probability_N[row])


@nb.njit(nogil=True, cache=True)
def _expected_of_keys(key_N: Any) -> tuple[float, float, float]:
    """Do what `_expected_wins` does, from sorted | 32 bits of the score | 32 bits of the probability |."""
    bits = np.zeros(1, np.uint32)
    as_float32 = bits.view(np.float32)
    wins, positives, negatives, row = 0.0, 0.0, 0.0, 0
    lost = np.zeros(3)  # what rounding took from each of the sums (Kahan)
    while row < len(key_N):
        score = key_N[row] >> np.uint64(32)
        positive, negative = 0.0, 0.0
        while row < len(key_N) and key_N[row] >> np.uint64(32) == score:
            bits[0] = np.uint32(key_N[row] & np.uint64(0xFFFFFFFF))
            probability = np.float64(as_float32[0])
            positive += probability
            negative += 1.0 - probability
            row += 1
        wins = _kahan(wins, positive * (negatives + 0.5 * negative), lost, 0)
        positives = _kahan(positives, positive, lost, 1)
        negatives = _kahan(negatives, negative, lost, 2)
    return wins, positives, negatives


@nb.njit(nogil=True, cache=True)
def _expected_wins(score_N: Any, probability_N: Any) -> tuple[float, float, float]:
    """Return the weight of the pairs won, of the positives and of the negatives; `score_N` is in ascending order."""
    wins, positives, negatives, row = 0.0, 0.0, 0.0, 0
    lost = np.zeros(3)
    while row < len(score_N):
        score = score_N[row]
        positive, negative = 0.0, 0.0
        while row < len(score_N) and score_N[row] == score:
            positive += probability_N[row]
            negative += 1.0 - probability_N[row]
            row += 1
        wins = _kahan(wins, positive * (negatives + 0.5 * negative), lost, 0)
        positives = _kahan(positives, positive, lost, 1)
        negatives = _kahan(negatives, negative, lost, 2)
    return wins, positives, negatives


@nb.njit(nogil=True, cache=True)
def _kahan(total: float, term: float, lost: Any, place: int) -> float:
    term -= lost[place]
    after = total + term
    lost[place] = (after - total) - term
    return after


def roc_curve(label: Array, score: Array, max_points: int = 200) -> RocCurve | None:
    """Return at most `max_points` exact points of the ROC curve, evenly spread over both classes; None without both."""
    return SortedScores.of(label, score).roc_curve(max_points)


def top_share(label_N: Array, score_N: Array, share: float) -> TopShare | None:
    """Return recall, precision and F1 when the `share` of impressions that score highest is taken (ESM² Tables 4 and 5).

    Where equal scores straddle the cut, the positives among them count by the share of them that is taken: the mean over
    all orders of the tie. None without both classes.
    """
    return SortedScores.of(label_N, score_N).top(share)
