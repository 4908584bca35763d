"""A row group as the feed uses it: checked, and packed in the order of the epoch, so that a step's part is one slice.

Each column is copied once, run by run, while its decoded values are still in the cache. (Kept in the order of the file,
the runs would be gathered for each batch, from memory that has long left the cache: twice the time.)
"""

# A run is a contiguous range [start, stop) of the file's bags that stays contiguous in the order of the epoch. Run k is
# [run_starts[k], run_stops[k]). Bags are the rows of a scope: contexts, or impressions.

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.dataset.kinds import NUMBER, VECTOR
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


class BagArrays(NamedTuple):
    """The bags of all categorical fields of one scope.

    A single-valued field is a row of `single_FN`. A multi-valued one is a row of `offsets_FN`, and may have weights.
    """

    slot_F: np.ndarray  # int64: s ≥ 0 is row s of single_FN; s < 0 is row -1 - s of offsets_FN and weight_shift_F
    single_FN: np.ndarray  # int32
    offsets_FN: np.ndarray  # int32 [F, N + 1], into values_V
    values_V: np.ndarray  # int32
    weight_shift_F: np.ndarray  # int64: the weight of value v is weights[v + shift]; NO_WEIGHTS
    weights: np.ndarray  # float32, of the weighted fields alone; the pooling is in them


@dataclass(frozen=True)
class ScopeArrays:
    """The fields of one scope over N contexts or impressions."""

    bags: BagArrays
    numeric_FN: np.ndarray  # float32: the inputs of the towers
    vectors_ND: np.ndarray  # float32, likewise: the vectors of all dense fields side by side


@dataclass(frozen=True)
class RowGroupData:
    """A checked row group in the order of the epoch."""

    offsets_R: np.ndarray  # int64 [R + 1]: the impressions of row r are offsets_R[r] to offsets_R[r + 1]
    context: ScopeArrays
    impression: ScopeArrays
    label_LB: np.ndarray  # float32, in the order of Columns.label_names
    impression_id_B: np.ndarray  # int64
    group_id_R: np.ndarray  # int64, UNKNOWN_GROUP where missing
    context_ids: list[str]  # of each row


def pack_row_group(
    stored: StoredRowGroup,
    columns: Columns,
    counts: RowGroup,
    where: str,
    *,
    shuffle_key: tuple[int, int, int] | None = None,
    clicked_only: bool = False,
    draw: Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray] | None = None,
    weigh: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> RowGroupData:
    """Check the row group `stored` against `counts` of the manifest, and pack it in the order of `shuffle_key`.

    Without a `shuffle_key` the order is that of the file. `clicked_only` keeps the clicked impressions and their
    contexts. `draw` returns the copies of each impression, from their ids and their labels click and conversion; what has
    none is left out. `weigh` returns their importance weights from the ids and the clicks. Raises InputError with `where` (file and row group), the column and what was found in it.
    """
    checked = CheckedColumns(stored, counts, where)
    promised = {"click": counts.clicks, "daction": counts.dactions, "conversion": counts.conversions}
    order_R = np.arange(counts.rows) if shuffle_key is None else permutation(shuffle_key, counts.rows)
    order, most_copies = _order_of_rows(order_R, checked.offsets_R), 1
    if clicked_only:
        order = _order_of_chosen(order_R, checked.offsets_R, np.flatnonzero(checked.label("click", counts.clicks)))
    elif draw is not None:
        drawn_by = {label: checked.label(label, promised[label]) for label in ("click", "conversion")}
        copies_B = draw(checked.impression_id_B, drawn_by)
        order = _order_of_chosen(order_R, checked.offsets_R, np.repeat(np.arange(len(copies_B)), copies_B))
        most_copies = int(copies_B.max(initial=1))
    label_LB = _empty((len(columns.label_names), int(order.offsets_R[-1])), np.float32)
    for label, label_B in zip(columns.labels, label_LB, strict=False):
        _copy_runs(checked.label(label, promised[label]), order.run_starts, order.run_stops, label_B)
    if weigh is not None:
        weight_B = weigh(checked.impression_id_B, checked.label("click", counts.clicks))
        _copy_runs(weight_B, order.run_starts, order.run_stops, label_LB[-1])
    context_ids = checked.context_ids()
    return RowGroupData(
        offsets_R=order.offsets_R,
        context=_pack_scope(checked, columns, "context", order.row_R, order.row_R + 1),
        impression=_pack_scope(checked, columns, "impression", order.run_starts, order.run_stops, most_copies),
        label_LB=label_LB,
        impression_id_B=_values_of_runs(checked.impression_id_B, order.run_starts, order.run_stops),
        group_id_R=checked.group_ids()[order.row_R],
        context_ids=[context_ids[row] for row in order.row_R.tolist()],
    )


@dataclass(frozen=True)
class _Order:
    """The order of the epoch: the rows, and their impressions as runs of the file's."""

    row_R: np.ndarray  # numbers of rows in the file
    offsets_R: np.ndarray  # int64 [R + 1], into the impressions in this order
    run_starts: np.ndarray  # int64, into the file's impressions
    run_stops: np.ndarray


def _order_of_rows(order_R: np.ndarray, offsets_R: np.ndarray) -> _Order:
    """Return the order of whole rows: one run each."""
    run_starts, run_stops = offsets_R[order_R].astype(np.int64), offsets_R[order_R + 1].astype(np.int64)
    return _Order(order_R, _ends(run_stops - run_starts), run_starts, run_stops)


def _order_of_chosen(order_R: np.ndarray, offsets_R: np.ndarray, chosen: np.ndarray) -> _Order:
    """Return the order of the impressions `chosen` (ascending, copies repeated), one run each, and of the rows that have any."""
    ends_R = np.searchsorted(chosen, offsets_R)
    row_R = order_R[np.diff(ends_R)[order_R] > 0]
    run_starts = _values_of_runs(chosen, ends_R[row_R], ends_R[row_R + 1])
    return _Order(row_R, _ends(ends_R[row_R + 1] - ends_R[row_R]), run_starts, run_starts + 1)


def _ends(lengths: np.ndarray) -> np.ndarray:
    """Return int64: 0, then the sum up to each of `lengths`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _pack_scope(
    checked: CheckedColumns,
    columns: Columns,
    scope: str,
    run_starts: np.ndarray,
    run_stops: np.ndarray,
    most_copies: int = 1,
) -> ScopeArrays:
    """Pack the fields of `scope`: the runs of its bags, in this order; no bag is in more than `most_copies` runs."""
    fields, num_bags = columns.of_scope(scope), int((run_stops - run_starts).sum())
    single_valued = [entry for entry in fields if entry.arity == "one"]
    single_FN = _empty((len(single_valued), num_bags), np.int32)
    for entry, values_N in zip(single_valued, single_FN, strict=True):
        _copy_runs(checked.single_valued(entry), run_starts, run_stops, values_N)
    many = [entry for entry in fields if entry.arity == "many"]
    multi_valued = _MultiValuedFields(checked, columns, many, num_bags, most_copies)
    for number in range(len(multi_valued.fields)):
        multi_valued.copy_runs(number, run_starts, run_stops)
    numeric = columns.of_scope(scope, NUMBER)
    numeric_FN = _empty((len(numeric), num_bags), np.float32)
    for entry, inputs_N in zip(numeric, numeric_FN, strict=True):
        _copy_runs(checked.numeric_inputs(entry), run_starts, run_stops, inputs_N)
    vectors_ND = _empty((num_bags, columns.num_inputs(scope) - len(numeric)), np.float32)
    at = 0
    for entry in columns.of_scope(scope, VECTOR):
        _copy_vector_runs(
            checked.vector_inputs(entry), run_starts, run_stops, vectors_ND[:, at : at + entry.num_inputs]
        )
        at += entry.num_inputs
    slots = {entry.name: number for number, entry in enumerate(single_valued)}
    slots |= {entry.name: -1 - number for number, entry in enumerate(multi_valued.fields)}
    slot_F = np.array([slots[entry.name] for entry in fields], np.int64)
    return ScopeArrays(multi_valued.bags_with(slot_F, single_FN), numeric_FN, vectors_ND)


class _MultiValuedFields:
    """The multi-valued fields of one scope, one after the other in arrays that have room for all of them."""

    def __init__(
        self,
        checked: CheckedColumns,
        columns: Columns,
        fields: Sequence[ManifestField],
        num_bags: int,
        most_copies: int,
    ) -> None:
        self._checked, self._columns, self.fields = checked, columns, fields
        most = [most_copies * checked.most_values(entry) for entry in fields]
        if sum(most) > np.iinfo(np.int32).max:
            raise checked.error(fields[0].name, f"{sum(most)} values with the other fields', more than 2^31 - 1")
        self._offsets_FN = _empty((len(fields), num_bags + 1), np.int32)
        self._values_V = _empty((sum(most),), np.int32)
        self._weight_shift_F = np.full(len(fields), NO_WEIGHTS, np.int64)
        has_weights = [self._is_mean(entry) or entry.weighted for entry in fields]
        self._weights = _empty((sum(itertools.compress(most, has_weights)),), np.float32)
        self._num_values = self._num_weights = 0

    def copy_runs(self, number: int, run_starts: np.ndarray, run_stops: np.ndarray) -> None:
        """Decode the field `number`, and append the runs of its bags to the arrays, in this order."""
        entry, offsets_N = self.fields[number], self._offsets_FN[number]
        indices, offsets, weights = self._checked.multi_valued(entry)
        value_starts, value_stops = offsets[run_starts], offsets[run_stops]
        _copy_run_offsets(offsets, run_starts, run_stops, offsets_N)
        count = int(offsets_N[-1])
        _copy_runs(indices, value_starts, value_stops, self._values_V[self._num_values :])
        if entry.weighted or self._is_mean(entry):
            own = self._weights[self._num_weights : self._num_weights + count]
            if weights is None:
                own[:] = 1.0
            else:
                _copy_runs(weights, value_starts, value_stops, own)
            if self._is_mean(entry):
                divide = _divide_long if count > LONG_BAG * len(offsets_N) else _divide_short
                divide(own, offsets_N)
            self._weight_shift_F[number] = self._num_weights - self._num_values
            self._num_weights += count
        offsets_N += np.int32(self._num_values)  # from here on they count from the first field's first value
        self._num_values += count

    def bags_with(self, slot_F: np.ndarray, single_FN: np.ndarray) -> BagArrays:
        """Return the bags of all categorical fields of the scope: these, and the single-valued ones."""
        return BagArrays(slot_F, single_FN, self._offsets_FN, self._values_V, self._weight_shift_F, self._weights)

    def _is_mean(self, entry: ManifestField) -> bool:
        return self._columns.pooling[entry.name] == "mean"


def _empty(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Allocate from Arrow's memory pool, which keeps its memory: glibc returns large blocks, to be faulted in again."""
    buffer = pa.allocate_buffer(math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _values_of_runs(values: np.ndarray, run_starts: np.ndarray, run_stops: np.ndarray) -> np.ndarray:
    """Return the runs of `values` as a new array."""
    out = np.empty(int((run_stops - run_starts).sum()), values.dtype)
    _copy_runs(values, run_starts, run_stops, out)
    return out


@nb.njit(nogil=True, cache=True)
def _copy_runs(values: np.ndarray, run_starts: np.ndarray, run_stops: np.ndarray, out: np.ndarray) -> None:
    """Write the runs of `values` to `out`, one after the other."""
    at = 0
    for run in range(len(run_starts)):
        run_values = values[run_starts[run] : run_stops[run]]
        run_out = out[at : at + len(run_values)]
        for place in range(len(run_values)):  # from 0, or numba's test for negative indices prevents vectorizing
            run_out[place] = run_values[place]
        at += len(run_values)


@nb.njit(nogil=True, cache=True)
def _copy_vector_runs(
    vectors_ND: np.ndarray, run_starts: np.ndarray, run_stops: np.ndarray, out_ND: np.ndarray
) -> None:
    """Copy the runs of rows [run_starts[k], run_stops[k]), one after the other."""
    at = 0
    for run in range(len(run_starts)):
        for row in range(run_starts[run], run_stops[run]):
            vector, out = vectors_ND[row], out_ND[at]
            for place in range(len(vector)):
                out[place] = vector[place]
            at += 1


@nb.njit(nogil=True, cache=True)
def _copy_run_offsets(offsets: np.ndarray, run_starts: np.ndarray, run_stops: np.ndarray, out_N: np.ndarray) -> None:
    """Write 0 to `out_N`, then the end of each bag of the runs, counted as if the runs were one array.

    offsets    0 2 3 7 9      runs [2, 4), [0, 1): bags of 4, 2 and 2 values
    out_N      0 4 6 8
    """
    out_N[0] = 0
    at = 1
    for run in range(len(run_starts)):
        shift = out_N[at - 1] - offsets[run_starts[run]]
        run_ends = offsets[run_starts[run] + 1 : run_stops[run] + 1]
        run_out = out_N[at : at + len(run_ends)]
        for place in range(len(run_ends)):
            run_out[place] = run_ends[place] + shift
        at += len(run_ends)


@nb.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})  # so that the sum runs in vector lanes
def _divide_long(weights_V: np.ndarray, offsets_N: np.ndarray) -> None:
    """Divide each weight by Σ|w| of its bag [offsets_N[n], offsets_N[n + 1]); 0 where the sum is 0. offsets_N[0] is 0."""
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
    """Compute the same as `_divide_long`, by values: a loop for each bag of one or two mispredicts a branch each (2.4x).

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
