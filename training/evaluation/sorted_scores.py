"""The labels and scores of one task, sorted once: AUC, retrieval at the top and the charts are scans or searches of it.

A key is one unsigned number an impression, whose order is that of the scores:

    float32 scores ≥ 0, with numbers   | 31 bits of the score | label | 32 bits: the number of the user |   uint64
    float32 scores ≥ 0                 | 31 bits of the score | label |                                     uint32
    float64 scores in [0, 2)           | 63 bits of the score | label |                                     uint64
    any other scores                   as the first, with the dense rank of the score in its place

A float that is not negative compares as its bits do. Equal scores stand together, the negatives first. The keys hold all
that the figures need, so 43 million impressions take 344 MB and one sort.
"""

# Shapes: N impressions, K numbers (of users). Arrays without a suffix have an entry for each place asked for.

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.jit import nb
from training.evaluation.exact_sums import LARGEST_TERM, ExactSum, add_term, log_loss_of, sum_of

Array = NDArray[Any]  # any dtype: labels are int8 or bool, scores float32 or float64

_NUMBER_BITS = 32


@nb.njit(nogil=True, cache=True)
def _pack(code_N: Any, label_N: Any, number_N: Any, key_N: Any) -> None:
    for row in range(len(code_N)):
        key = (np.uint64(code_N[row]) << np.uint64(1)) | np.uint64(label_N[row])
        if len(number_N):
            key = (key << np.uint64(32)) | np.uint64(number_N[row])
        key_N[row] = key


@nb.njit(nogil=True, cache=True)
def _twice_wins(key_N: Any, label_bit: int) -> tuple[int, int]:
    """Return 2 · (pairs won + ½ pairs tied), and the number of positives; walks the runs of equal scores."""
    to_label, to_code = np.uint64(label_bit), np.uint64(label_bit + 1)
    twice_wins, positives, negatives_below, row = 0, 0, 0, 0
    while row < len(key_N):
        code = np.uint64(key_N[row]) >> to_code
        tied_positives, tied_negatives = 0, 0
        while row < len(key_N) and np.uint64(key_N[row]) >> to_code == code:
            if (np.uint64(key_N[row]) >> to_label) & np.uint64(1):
                tied_positives += 1
            else:
                tied_negatives += 1
            row += 1
        twice_wins += tied_positives * (2 * negatives_below + tied_negatives)
        negatives_below += tied_negatives
        positives += tied_positives
    return twice_wins, positives


@nb.njit(nogil=True, cache=True)
def _add_scores(key_N: Any, label_bit: int, table: Any, is_wide: bool, sums: Any) -> None:
    """Add to sums[0] the log losses, and to sums[1] the scores; a score that repeats is computed once."""
    to_label, to_code = np.uint64(label_bit), np.uint64(label_bit + 1)
    bits, wide_bits = np.zeros(1, np.uint32), np.zeros(1, np.uint64)
    as_float32, as_float64 = bits.view(np.float32), wide_bits.view(np.float64)
    row = 0
    while row < len(key_N):
        code = np.uint64(key_N[row]) >> to_code
        bits[0], wide_bits[0] = np.uint32(code), code
        score = np.float64(as_float64[0]) if is_wide else np.float64(as_float32[0])
        if len(table):
            score = table[np.int64(code)]
        loss_of_negative, loss_of_positive = log_loss_of(0.0, score), -1.0
        while row < len(key_N) and np.uint64(key_N[row]) >> to_code == code:
            if (np.uint64(key_N[row]) >> to_label) & np.uint64(1):
                if loss_of_positive < 0.0:
                    loss_of_positive = log_loss_of(1.0, score)
                add_term(sums, 0, loss_of_positive)
            else:
                add_term(sums, 0, loss_of_negative)
            add_term(sums, 1, score)
            row += 1


@nb.njit(nogil=True, cache=True)
def _add_by_number(key_N: Any, table: Any, counts: Any, sums: Any, seen: Any) -> None:
    """Fill the columns of `ByNumber`, in one walk over the runs of equal scores.

    seen holds, of each number so far: its negatives, the code of its last negative + 1, how many negatives had that code.
    """
    bits = np.zeros(1, np.uint32)
    as_float32 = bits.view(np.float32)
    num_positives: Any = 0
    for row in range(len(key_N)):
        num_positives += np.int64((key_N[row] >> np.uint64(32)) & np.uint64(1))
    negatives_below, positives_above, row = 0, num_positives, 0
    while row < len(key_N):
        code = key_N[row] >> np.uint64(33)
        tied_positives: Any = 0
        end = row
        while end < len(key_N) and key_N[end] >> np.uint64(33) == code:
            tied_positives += np.int64((key_N[end] >> np.uint64(32)) & np.uint64(1))
            end += 1
        tied_negatives = end - row - tied_positives
        positives_above -= tied_positives
        bits[0] = np.uint32(code)
        score = table[np.int64(code)] if len(table) else np.float64(as_float32[0])
        loss_of_negative = log_loss_of(0.0, score) if tied_negatives else 0.0
        loss_of_positive = log_loss_of(1.0, score) if tied_positives else 0.0
        for place in range(row, end):
            number = np.int64(key_N[place] & np.uint64(0xFFFFFFFF))
            counts[number, 0] += 1
            sums[number, 1] += score
            if (key_N[place] >> np.uint64(32)) & np.uint64(1):
                counts[number, 1] += 1
                counts[number, 2] += 2 * negatives_below + tied_negatives
                tied_inside = seen[number, 2] if seen[number, 1] == np.int64(code) + 1 else 0
                counts[number, 4] += 2 * seen[number, 0] - tied_inside
                sums[number, 0] += loss_of_positive
            else:
                counts[number, 3] += 2 * positives_above + tied_positives
                if seen[number, 1] != np.int64(code) + 1:
                    seen[number, 1], seen[number, 2] = np.int64(code) + 1, 0
                seen[number, 0] += 1
                seen[number, 2] += 1
                sums[number, 0] += loss_of_negative
        negatives_below += tied_negatives
        row = end


class TopShare(NamedTuple):
    """Retrieval at the top of the list."""

    recall: float
    precision: float
    f1: float


@dataclass(frozen=True)
class CalibrationCurve:
    """Per bin of predicted probability, in rising order and without empty bins."""

    predicted: NDArray[np.float64]  # mean probability
    observed: NDArray[np.float64]  # share of positives
    count: NDArray[np.int64]


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve from (0, 0) to (1, 1)."""

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]


@dataclass(frozen=True)
class ByNumber:
    """What each number (a user, or a context) adds to the figures of a task, [K]."""

    count: NDArray[np.int64]
    positives: NDArray[np.int64]
    twice_wins: NDArray[np.int64]  # of its positives: 2 · negatives below + ties, over all impressions
    twice_losses: NDArray[np.int64]  # of its negatives: 2 · positives above + ties, over all impressions
    twice_wins_inside: NDArray[np.int64]  # of its positives, over its own negatives
    log_loss: NDArray[np.float64]
    predicted: NDArray[np.float64]  # the sum of its scores


class SortedScores:
    """Labels and scores of one task in ascending order of score."""

    def __init__(self, key_N: Array, label_bit: int, table: NDArray[np.float64], is_wide: bool) -> None:
        self._key_N, self._label_bit, self._table, self._is_wide = key_N, label_bit, table, is_wide

    @classmethod
    def of(cls, label_N: Array, score_N: Array, number_N: Array | None = None) -> "SortedScores":
        """Pack and sort finite scores; `number_N` holds numbers in [0, 2³²) for `by_number`."""
        nothing, label_N = np.empty(0, np.float64), label_N.astype(bool, copy=False)
        is_positive = len(score_N) == 0 or score_N.min() >= 0
        if is_positive and score_N.dtype == np.float64 and number_N is None and not (score_N >= 2.0).any():
            code_N, table, wide = bits_of(score_N), nothing, True
        elif is_positive and score_N.dtype == np.float32:
            code_N, table, wide = bits_of(score_N), nothing, False
        else:
            distinct, code_N = np.unique(score_N, return_inverse=True)
            table, wide = distinct.astype(np.float64), False
        key_N = np.empty(len(score_N), np.uint32 if not wide and number_N is None else np.uint64)
        _pack(code_N, label_N, np.empty(0, np.int32) if number_N is None else number_N, key_N)
        key_N.sort()
        return cls(key_N, 0 if number_N is None else _NUMBER_BITS, table, wide)

    def __len__(self) -> int:
        return len(self._key_N)

    @cached_property
    def positive_place(self) -> NDArray[np.int64]:
        """The places of the positives in ascending order of score."""
        return np.flatnonzero((self._key_N >> self._key_N.dtype.type(self._label_bit)) & self._key_N.dtype.type(1))

    @property
    def num_positives(self) -> int:
        return len(self.positive_place)

    def score_at(self, place: Array) -> NDArray[np.float64]:
        """Return the scores at these places of the ascending order."""
        code = self._key_N[place].astype(np.uint64) >> np.uint64(self._label_bit + 1)
        if len(self._table):
            return self._table[code.astype(np.intp)]
        return code.view(np.float64) if self._is_wide else code.astype(np.uint32).view(np.float32).astype(np.float64)

    def places_of(self, score: Array, side: str) -> NDArray[np.int64]:
        """Return how many scores are below (`side` left) or not above (right) each of `score`."""
        # A search by places: the scores of a few places are decoded, not those of all.
        low, high = np.zeros(len(score), np.int64), np.full(len(score), len(self), np.int64)
        while (is_open := low < high).any():
            middle = (low + high) // 2
            at = self.score_at(np.minimum(middle, len(self) - 1))
            goes_up = is_open & ((at < score) if side == "left" else (at <= score))
            low = np.where(goes_up, middle + 1, low)
            high = np.where(is_open & ~goes_up, middle, high)
        return low

    def positives_before(self, place: Array) -> NDArray[np.int64]:
        """Return how many positives stand before each place."""
        return np.searchsorted(self.positive_place, place, side="left")

    def auc(self) -> float | None:
        """Return the probability that a positive scores above a negative, ties counting one half; None without both classes.

        A quotient of integers (Mann–Whitney), so exact to the last bit of the division.
        """
        twice_wins, positives = _twice_wins(self._key_N, self._label_bit)
        negatives = len(self) - positives
        return int(twice_wins) / (2 * positives * negatives) if positives and negatives else None

    def sums(self) -> tuple[ExactSum, ExactSum]:
        """Return the sum of the log losses, and that of the scores."""
        return self._sums_between(0, len(self))

    def _sums_between(self, start: int, stop: int) -> tuple[ExactSum, ExactSum]:
        sums = np.zeros((2, 2), np.int64)
        _add_scores(self._key_N[start:stop], self._label_bit, self._table, self._is_wide, sums)
        log_loss, predicted = ExactSum.of(sums[0]), ExactSum.of(sums[1])
        if start < stop and not (np.abs(self.score_at(np.array([start, stop - 1]))) < LARGEST_TERM).all():
            predicted = sum_of(self.score_at(np.arange(start, stop)))
        return log_loss, predicted

    def by_number(self, num_numbers: int) -> ByNumber:
        """Add up what each number adds to the figures; needs numbers below `num_numbers`."""
        assert self._label_bit == _NUMBER_BITS
        counts, sums = np.zeros((num_numbers, 5), np.int64), np.zeros((num_numbers, 2))  # [K, columns]
        _add_by_number(self._key_N, self._table, counts, sums, np.zeros((num_numbers, 3), np.int64))
        return ByNumber(*(np.ascontiguousarray(column) for column in (*counts.T, *sums.T)))

    def top(self, share: float) -> TopShare | None:
        """Return recall, precision and F1 when the `share` of impressions that score highest is taken.

        Where equal scores straddle the cut, the positives among them count by the share of them that is taken: the mean
        over all orders of the tie. None without both classes.
        """
        num, num_positives = len(self), self.num_positives
        if num_positives in (0, num):
            return None
        num_taken = max(1, round(share * num))
        cut = self.score_at(np.array([num - num_taken]))
        first_tied, first_above = int(self.places_of(cut, "left")[0]), int(self.places_of(cut, "right")[0])
        num_above, num_tied = num - first_above, first_above - first_tied
        before_tied, before_above = self.positives_before(np.array([first_tied, first_above])).tolist()
        hits = num_positives - before_above
        hits += (before_above - before_tied) * (num_taken - num_above) / num_tied
        return TopShare(hits / num_positives, hits / num_taken, 2 * hits / (num_taken + num_positives))

    def calibration_curve(self, bins: int) -> CalibrationCurve:
        """Return mean prediction and share of positives in `bins` bins of equal mass.

        The edges are quantiles of the predictions and equal predictions share a bin, so neither depends on the order of
        rows; with many ties there are fewer bins and unequal ones.
        """
        if not len(self):
            return CalibrationCurve(np.empty(0), np.empty(0), np.empty(0, np.int64))
        last_of_bin = -(-np.arange(1, bins) * len(self) // bins) - 1  # ceil(q N / Q) - 1; a bin holds its upper edge
        edges = np.unique(self.score_at(last_of_bin))
        starts = np.concatenate(([0], self.places_of(edges, "right"), [len(self)]))
        starts = starts[np.concatenate(([True], starts[1:] > starts[:-1]))]
        count, positives = np.diff(starts), np.diff(self.positives_before(starts))
        bounds = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        predicted = [self._sums_between(start, stop)[1].over(stop - start) for start, stop in bounds]
        return CalibrationCurve(np.array(predicted), positives / count, count)

    def roc_curve(self, max_points: int = 200) -> RocCurve | None:
        """Return at most `max_points` exact points of the ROC curve, evenly spread over both classes; None without both."""
        num_positives, num_negatives = self.num_positives, len(self) - self.num_positives
        if num_positives == 0 or num_negatives == 0:
            return None
        room = (max_points - 2) // 2
        thresholds = self._distinct(room)
        if thresholds is None:
            ranks = (np.linspace(0, num - 1, min(num, room)).round() for num in (num_positives, num_negatives))
            positive, negative = (rank.astype(np.int64) for rank in ranks)
            places = np.concatenate([self.positive_place[positive], self._place_of_negative(negative)])
            thresholds = np.unique(self.score_at(places))
        thresholds = thresholds[::-1]
        below = self.places_of(thresholds, "left")
        positives_below = self.positives_before(below)
        true_positive_rate = 1.0 - positives_below / num_positives
        false_positive_rate = 1.0 - (below - positives_below) / num_negatives
        return RocCurve(
            np.concatenate(([0.0], false_positive_rate, [1.0])), np.concatenate(([0.0], true_positive_rate, [1.0]))
        )

    def _distinct(self, most: int) -> NDArray[np.float64] | None:
        """Return the distinct scores; None where they are more than `most`."""
        found: list[float] = []
        place = 0
        while place < len(self):
            if len(found) == most:
                return None
            score = self.score_at(np.array([place]))
            found.append(float(score[0]))
            place = int(self.places_of(score, "right")[0])
        return np.array(found)

    def _place_of_negative(self, rank: Array) -> Array:
        """Return the places of the negatives with these ranks among the negatives."""
        negatives_before = self.positive_place - np.arange(self.num_positives)
        return rank + np.searchsorted(negatives_before, rank, side="right")


def bits_of(score_N: Array) -> Array:
    """Return the bits of floats that are not negative; -0 becomes 0, which has other bits."""
    score_N = np.ascontiguousarray(np.abs(score_N) if np.signbit(score_N).any() else score_N)
    return score_N.view(np.uint32 if score_N.dtype == np.float32 else np.uint64)
