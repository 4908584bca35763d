"""A row group as the feed holds it: checked, its fields in a few arrays in the order of the file, and the order in which
its rows are fed. training.collate gathers a step's share from there."""

# Shapes: R rows (contexts), I impressions, K runs of impressions, N bags of a scope (R or I), O fields of arity one, M of
# arity many, F both, V values, W weights, D numeric fields.

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

import pipeline.numba_cache  # noqa: F401  (before numba)

# isort: split
from numba import njit

from pipeline.manifest import NUMERIC, RowGroup
from training.checks import CheckedColumns
from training.columns import Columns
from training.pages import StoredRowGroup
from training.plan import permutation

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
class Order:
    """The rows that are fed, in order, and their impressions as K runs [first, last) of the file's."""

    row_R: np.ndarray  # int64
    offsets_R: np.ndarray  # int64 [R + 1], into the impressions that are fed
    first_K: np.ndarray  # int64
    last_K: np.ndarray  # int64
    offsets_K: np.ndarray  # int64 [K + 1], into the impressions that are fed


@dataclass(frozen=True)
class RowGroupData:
    """A checked row group: all of it in the order of the file, and the order in which it is fed."""

    order: Order
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
    """Check `stored`, a row group of which the manifest says `counts`, to be fed in the order of `shuffle_key`.

    `clicked_only` keeps the clicked impressions and their contexts. Raises InputError with `where` (file and row
    group), the column and what was found in it.
    """
    checked = CheckedColumns(stored, counts, where)
    labels_LI = checked.labels(columns.labels, counts)
    order_R = np.arange(counts.rows) if shuffle_key is None else permutation(shuffle_key, counts.rows)
    if clicked_only:
        order = _clicked_of(order_R, checked.offsets_R, np.flatnonzero(labels_LI[columns.labels.index("click")]))
    else:
        order = _all_of(order_R, checked.offsets_R)
    return RowGroupData(
        order=order,
        context=_packed(checked, columns, "context"),
        impression=_packed(checked, columns, "impression"),
        labels_LI=labels_LI,
        impression_id_I=checked.impression_id_I,
        group_id_R=checked.group_ids(),
        context_id_R=checked.context_ids(),
    )


def _all_of(order_R: np.ndarray, offsets_R: np.ndarray) -> Order:
    """Whole rows: one run each."""
    first_K, last_K = offsets_R[order_R].astype(np.int64), offsets_R[order_R + 1].astype(np.int64)
    fed_R = _ends(last_K - first_K)
    return Order(order_R, fed_R, first_K, last_K, fed_R)


def _clicked_of(order_R: np.ndarray, offsets_R: np.ndarray, clicked: np.ndarray) -> Order:
    """The impressions `clicked`, one run each, and the rows that have any."""
    ends_R = np.searchsorted(clicked, offsets_R)
    row_R = order_R[np.diff(ends_R)[order_R] > 0]
    fed_R = _ends(ends_R[row_R + 1] - ends_R[row_R])
    within_K = np.arange(fed_R[-1]) - np.repeat(fed_R[:-1], np.diff(fed_R))
    first_K = clicked[np.repeat(ends_R[row_R], np.diff(fed_R)) + within_K]
    return Order(row_R, fed_R, first_K, first_K + 1, np.arange(len(first_K) + 1))


def _ends(lengths: np.ndarray) -> np.ndarray:
    """int64: 0, then the sum up to each of `lengths`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _packed(checked: CheckedColumns, columns: Columns, scope: str) -> Packed:
    fields, num_bags = columns.of_scope(scope), checked.num_bags(scope)
    ones = [entry for entry in fields if entry.arity == "one"]
    many = [entry for entry in fields if entry.arity == "many"]
    numeric = columns.of_scope(scope, NUMERIC)
    ones_ON = _empty((len(ones), num_bags), np.int32)
    for place, entry in enumerate(ones):
        ones_ON[place] = checked.ones(entry)
    offsets_MN = _empty((len(many), num_bags + 1), np.int32)
    shift_M = np.full(len(many), NO_WEIGHTS, np.int64)
    values: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    num_values = num_weights = 0
    for place, entry in enumerate(many):
        indices, offsets, own = checked.bags(entry)
        if columns.pooling[entry.name] == "mean":
            own = _divided(own, offsets)
        if own is not None:
            shift_M[place] = num_weights - num_values
            weights.append(own)
            num_weights += len(own)
        if num_values + len(indices) > np.iinfo(np.int32).max:
            raise checked.error(entry.name, f"{num_values + len(indices)} values with the fields before, over 2^31 - 1")
        np.add(offsets, np.int32(num_values), out=offsets_MN[place])
        values.append(indices)
        num_values += len(indices)
    numeric_DN = _empty((len(numeric), num_bags), np.float32)
    for place, entry in enumerate(numeric):
        numeric_DN[place] = checked.numbers(entry)
    slot = {entry.name: place for place, entry in enumerate(ones)}
    slot |= {entry.name: -1 - place for place, entry in enumerate(many)}
    slot_F = np.array([slot[entry.name] for entry in fields], np.int64)
    return Packed(
        slot_F,
        ones_ON,
        offsets_MN,
        _joined(values, num_values, np.int32),
        shift_M,
        _joined(weights, num_weights, np.float32),
        numeric_DN,
    )


def _joined(parts: Sequence[np.ndarray], total: int, dtype: type[np.generic]) -> np.ndarray:
    joined = _empty((total,), dtype)
    if parts:
        np.concatenate(parts, out=joined)
    return joined


def _empty(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """np.empty from Arrow's memory pool, which keeps what it has: glibc gives large blocks back, to be faulted in again."""
    buffer = pa.allocate_buffer(math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _divided(weights: np.ndarray | None, offsets: np.ndarray) -> np.ndarray:
    """w / Σ|w| over each bag; no weights are weights of 1."""
    own = np.ones(int(offsets[-1]), np.float32) if weights is None else weights.copy()
    divide = _divide_long if len(own) > LONG_BAG * len(offsets) else _divide_short
    divide(own, offsets)
    return own


# Both kernels: w → w / Σ|w| over each bag [offsets_N[n], offsets_N[n + 1]), offsets_N[0] = 0; zeros where the sum is 0.


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})  # so that the sum runs in vector lanes
def _divide_long(weights_V: np.ndarray, offsets_N: np.ndarray) -> None:
    for bag in range(len(offsets_N) - 1):
        weights = weights_V[offsets_N[bag] : offsets_N[bag + 1]]
        total = np.float32(0)
        for place in range(len(weights)):
            total += abs(weights[place])
        scale = np.float32(1) / total if total > 0 else np.float32(0)
        for place in range(len(weights)):
            weights[place] *= scale


@njit(nogil=True, cache=True)
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
