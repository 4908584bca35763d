"""A row group as the feed wants it: checked, and packed in the order in which it is fed into a few arrays from which
any step can cut its batch.

Each column is copied once, run by run, while what was decoded of it is still in the cache. (Left in the order of the
file, the runs would be gathered for each batch, from memory that has long left the cache: twice the time.)
"""

# Shapes: R rows (contexts), I impressions, K runs of impressions, N bags of a scope (R or I), O fields of arity one, M of
# arity many, F both, V values, W weights, L labels, D numeric fields.

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.dataset.kinds import NUMBER
from pipeline.dataset.manifest import ManifestField, RowGroup
from pipeline.kernels.jit import nb
from training.feed.checked_columns import CheckedColumns
from training.feed.column_reader import StoredRowGroup
from training.feed.columns import Columns
from training.feed.plan import permutation

#: Mean values of a bag above which a loop for each bag is faster than one over all values.
LONG_BAG = 8
#: The shift of a field whose weights are all 1.
NO_WEIGHTS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Packed:
    """The fields of one scope over N bags; a field of arity one is a row of `ones_ON`, without offsets or weights."""

    slot_F: np.ndarray  # int64: s ≥ 0 is row s of ones_ON; s < 0 is row -1 - s of offsets_MN
    ones_ON: np.ndarray  # int32
    offsets_MN: np.ndarray  # int32 [M, N + 1], into values_V
    values_V: np.ndarray  # int32
    shift_M: np.ndarray  # int64: the weight of value v is weights_W[v + shift]; NO_WEIGHTS
    weights_W: np.ndarray  # float32, with the pooling in them
    numeric_DN: np.ndarray  # float32, as the towers take them


@dataclass(frozen=True)
class RowGroupData:
    """A checked row group in the order in which it is fed, so that a step's part of it is one slice of each array."""

    offsets_R: np.ndarray  # int64 [R + 1]: the impressions of row r are offsets_R[r] to offsets_R[r + 1]
    context: Packed
    impression: Packed
    labels_LI: np.ndarray  # float32, in the order of Columns.labels
    impression_id_I: np.ndarray  # int64
    group_id_R: np.ndarray  # int64, NO_GROUP where missing
    context_id_R: list[str]


def pack(
    stored: StoredRowGroup,
    columns: Columns,
    counts: RowGroup,
    where: str,
    *,
    shuffle_key: tuple[int, int, int] | None = None,
    clicked_only: bool = False,
) -> RowGroupData:
    """Check `stored`, one row group of which the manifest says `counts`, and pack it in the order of `shuffle_key`.

    `clicked_only` keeps the clicked impressions and their contexts. Raises InputError with `where` (file and row
    group), the column and what was found in it.
    """
    checked = CheckedColumns(stored, counts, where)
    promised = {"click": counts.clicks, "daction": counts.dactions, "conversion": counts.conversions}
    order_R = np.arange(counts.rows) if shuffle_key is None else permutation(shuffle_key, counts.rows)
    order = _all_of(order_R, checked.offsets_R)
    if clicked_only:
        order = _clicked_of(order_R, checked.offsets_R, np.flatnonzero(checked.label("click", counts.clicks)))
    labels_LI = _empty((len(columns.labels), int(order.offsets_R[-1])), np.float32)
    for label, label_I in zip(columns.labels, labels_LI, strict=True):
        _gather(checked.label(label, promised[label]), order.first_K, order.last_K, label_I)
    context_id_R = checked.context_ids()
    return RowGroupData(
        offsets_R=order.offsets_R,
        context=_pack_scope(checked, columns, "context", order.row_R, order.row_R + 1),
        impression=_pack_scope(checked, columns, "impression", order.first_K, order.last_K),
        labels_LI=labels_LI,
        impression_id_I=_gather_runs(checked.impression_id_I, order.first_K, order.last_K),
        group_id_R=checked.group_ids()[order.row_R],
        context_id_R=[context_id_R[row] for row in order.row_R.tolist()],
    )


@dataclass(frozen=True)
class _Order:
    """The rows that are fed, in order, and their impressions as K runs [first, last) of the file's."""

    row_R: np.ndarray
    offsets_R: np.ndarray  # [R + 1], into the impressions that are fed
    first_K: np.ndarray
    last_K: np.ndarray


def _all_of(order_R: np.ndarray, offsets_R: np.ndarray) -> _Order:
    """Whole rows: one run each."""
    first_K, last_K = offsets_R[order_R].astype(np.int64), offsets_R[order_R + 1].astype(np.int64)
    return _Order(order_R, _ends(last_K - first_K), first_K, last_K)


def _clicked_of(order_R: np.ndarray, offsets_R: np.ndarray, clicked: np.ndarray) -> _Order:
    """The impressions `clicked`, one run each, and the rows that have any."""
    ends_R = np.searchsorted(clicked, offsets_R)
    row_R = order_R[np.diff(ends_R)[order_R] > 0]
    first_K = _gather_runs(clicked, ends_R[row_R], ends_R[row_R + 1])
    return _Order(row_R, _ends(ends_R[row_R + 1] - ends_R[row_R]), first_K, first_K + 1)


def _ends(lengths: np.ndarray) -> np.ndarray:
    """int64: 0, then the sum up to each of `lengths`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _pack_scope(
    checked: CheckedColumns, columns: Columns, scope: str, first_K: np.ndarray, last_K: np.ndarray
) -> Packed:
    """The fields of `scope`: the bags first_K to last_K of the row group, in this order."""
    fields, num_bags = columns.of_scope(scope), int((last_K - first_K).sum())
    ones = [entry for entry in fields if entry.arity == "one"]
    numeric = columns.of_scope(scope, NUMBER)
    many = _Many(checked, columns, [entry for entry in fields if entry.arity == "many"], num_bags)
    ones_ON, numeric_DN = _empty((len(ones), num_bags), np.int32), _empty((len(numeric), num_bags), np.float32)
    for entry, one_N in zip(ones, ones_ON, strict=True):
        _gather(checked.ones(entry), first_K, last_K, one_N)
    for place in range(len(many.fields)):
        many.add(place, first_K, last_K)
    for entry, number_N in zip(numeric, numeric_DN, strict=True):
        _gather(checked.numbers(entry), first_K, last_K, number_N)
    slot = {entry.name: place for place, entry in enumerate(ones)}
    slot |= {entry.name: -1 - place for place, entry in enumerate(many.fields)}
    slot_F = np.array([slot[entry.name] for entry in fields], np.int64)
    return Packed(slot_F, ones_ON, many.offsets_MN, many.values_V, many.shift_M, many.weights_W, numeric_DN)


class _Many:
    """The fields of arity many of one scope, one after the other in arrays that have room for all of them."""

    def __init__(
        self, checked: CheckedColumns, columns: Columns, fields: Sequence[ManifestField], num_bags: int
    ) -> None:
        self._checked, self._columns, self.fields = checked, columns, fields
        most = [checked.most_values(entry) for entry in fields]
        if sum(most) > np.iinfo(np.int32).max:
            raise checked.error(fields[0].name, f"{sum(most)} values with the other fields', more than 2^31 - 1")
        self.offsets_MN = _empty((len(fields), num_bags + 1), np.int32)
        self.values_V = _empty((sum(most),), np.int32)
        self.shift_M = np.full(len(fields), NO_WEIGHTS, np.int64)
        has_weights = [self._is_mean(entry) or entry.weighted for entry in fields]
        self.weights_W = _empty((sum(itertools.compress(most, has_weights)),), np.float32)
        self._num_values = self._num_weights = 0

    def add(self, place: int, first_K: np.ndarray, last_K: np.ndarray) -> None:
        """The field number `place`: the bags first_K to last_K of the row group, in this order."""
        entry, offsets_N = self.fields[place], self.offsets_MN[place]
        indices, offsets, weights = self._checked.bags(entry)
        start_K, stop_K = offsets[first_K], offsets[last_K]
        _gather_offsets(offsets, first_K, last_K, offsets_N)
        count = int(offsets_N[-1])
        _gather(indices, start_K, stop_K, self.values_V[self._num_values :])
        if entry.weighted or self._is_mean(entry):
            own = self.weights_W[self._num_weights : self._num_weights + count]
            if weights is None:
                own[:] = 1.0
            else:
                _gather(weights, start_K, stop_K, own)
            if self._is_mean(entry):
                divide = _divide_long if count > LONG_BAG * len(offsets_N) else _divide_short
                divide(own, offsets_N)
            self.shift_M[place] = self._num_weights - self._num_values
            self._num_weights += count
        offsets_N += np.int32(self._num_values)
        self._num_values += count

    def _is_mean(self, entry: ManifestField) -> bool:
        return self._columns.pooling[entry.name] == "mean"


def _empty(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """np.empty from Arrow's memory pool, which keeps what it has: glibc gives large blocks back, to be faulted in again."""
    buffer = pa.allocate_buffer(math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _gather_runs(values: np.ndarray, first_K: np.ndarray, last_K: np.ndarray) -> np.ndarray:
    out = np.empty(int((last_K - first_K).sum()), values.dtype)
    _gather(values, first_K, last_K, out)
    return out


@nb.njit(nogil=True, cache=True)
def _gather(values: np.ndarray, first_K: np.ndarray, last_K: np.ndarray, out: np.ndarray) -> None:
    """out: the runs [first_K[k], last_K[k]) of `values`, one after the other."""
    at = 0
    for run in range(len(first_K)):
        run_values = values[first_K[run] : last_K[run]]
        run_out = out[at : at + len(run_values)]
        for place in range(len(run_values)):  # from 0, or numba's test for negative indices keeps it from vectorizing
            run_out[place] = run_values[place]
        at += len(run_values)


@nb.njit(nogil=True, cache=True)
def _gather_offsets(offsets: np.ndarray, first_K: np.ndarray, last_K: np.ndarray, out_N: np.ndarray) -> None:
    """out_N: 0, then the end of each bag of the runs first_K to last_K when they stand one after the other."""
    out_N[0] = 0
    at = 1
    for run in range(len(first_K)):
        shift = out_N[at - 1] - offsets[first_K[run]]
        run_ends = offsets[first_K[run] + 1 : last_K[run] + 1]
        run_out = out_N[at : at + len(run_ends)]
        for place in range(len(run_ends)):
            run_out[place] = run_ends[place] + shift
        at += len(run_ends)


# Both kernels: w → w / Σ|w| over each bag [offsets_N[n], offsets_N[n + 1]), offsets_N[0] = 0; zeros where the sum is 0.


@nb.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})  # so that the sum runs in vector lanes
def _divide_long(weights_V: np.ndarray, offsets_N: np.ndarray) -> None:
    for bag in range(len(offsets_N) - 1):
        weights = weights_V[offsets_N[bag] : offsets_N[bag + 1]]
        total = np.float32(0)
        for place in range(len(weights)):
            total += abs(weights[place])
        scale = np.float32(1) / total if total > 0 else np.float32(0)
        for place in range(len(weights)):
            weights[place] *= scale


@nb.njit(nogil=True, cache=True)
def _divide_short(weights_V: np.ndarray, offsets_N: np.ndarray) -> None:
    """Walks the values, not the bags: for bags of one or two, a loop each costs a mispredicted branch each (2.4x).

    offsets_N  0   2 2     5        sum_N   0   w0+w1   0   w2+w3+w4
    bag_V        1 1 3 3 3
    """
    num_values = len(weights_V)
    bag_V = np.zeros(num_values + 1, np.int32)
    for bag in range(len(offsets_N) - 1):
        bag_V[offsets_N[bag]] += 1
    sum_N = np.zeros(len(offsets_N), np.float32)
    bag = 0
    for place in range(num_values):
        bag += bag_V[place]
        bag_V[place] = bag
        sum_N[bag] += abs(weights_V[place])
    for bag in range(len(sum_N)):
        sum_N[bag] = np.float32(1) / sum_N[bag] if sum_N[bag] > 0 else np.float32(0)
    for place in range(num_values):
        weights_V[place] *= sum_N[bag_V[place]]
