"""A row group as the feed wants it: checked, and packed into a few arrays from which any step can cut its share.

Readers trust nothing (DESIGN §4): what a row group holds is compared with what the manifest promises, once, as it is
read. FBGEMM, left alone, would log "setting idx to zero" and train on.
"""

# Shapes: R rows (contexts), I impressions, N bags of a scope (R or I), O fields of arity one, M of arity many, V values,
# D numeric fields.

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

import pipeline.numba_cache  # noqa: F401  (before numba)
from pipeline.manifest import CATEGORICAL, NUMERIC, InputError, ManifestField, RowGroup

# isort: split
from numba import njit

from training.batch import NO_GROUP
from training.numeric import check_moments, squashed
from training.plan import permutation

POOLINGS = ("sum", "mean")
#: Mean values of a bag above which a loop for each bag is faster than one over all values.
LONG_BAG = 8
INT8_LIST, INT32_LIST = pa.list_(pa.int8()), pa.list_(pa.int32())
INT64_LIST, FLOAT_LIST = pa.list_(pa.int64()), pa.list_(pa.float32())


@dataclass(frozen=True)
class Columns:
    """What is read of a dataset: the fields in catalogue order, how each is pooled, and the labels."""

    fields: tuple[ManifestField, ...]
    pooling: Mapping[str, str]  # field of arity many → sum | mean
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        for entry in self.fields:
            pooling = self.pooling.get(entry.name)
            if entry.kind == NUMERIC:
                check_moments(entry)
            elif entry.arity == "many" and pooling not in POOLINGS:
                raise InputError(
                    f"The pooling of {entry.name} is {pooling!r}; choose one of {', '.join(POOLINGS)} for every field "
                    "of arity many."
                )

    def of_scope(self, scope: str, kind: str = CATEGORICAL) -> tuple[ManifestField, ...]:
        """The fields of `kind` and of scope "context" or "impression", in catalogue order."""
        return tuple(entry for entry in self.fields if (entry.scope, entry.kind) == (scope, kind))

    def types(self) -> dict[str, pa.DataType]:
        """Every column that is read, with the type that DESIGN §4 gives it."""
        types: dict[str, pa.DataType] = {
            "context_id": pa.string(),
            "group_id": pa.int64(),
            "impression_id": INT64_LIST,
        }
        types |= dict.fromkeys(self.labels, INT8_LIST)
        for entry in self.fields:
            if entry.kind == NUMERIC:
                types[entry.name] = pa.float32() if entry.scope == "context" else FLOAT_LIST
                continue
            types[entry.name] = pa.int32() if entry.scope == "context" and entry.arity == "one" else INT32_LIST
            if entry.scope == "impression" and entry.arity == "many":
                types[f"{entry.name}__length"] = INT32_LIST
            if entry.weighted:
                types[f"{entry.name}__weight"] = FLOAT_LIST
        return types


@dataclass(frozen=True)
class Packed:
    """The fields of one scope over N bags; a field of arity one is a row of `ones_ON`, without offsets or weights."""

    slot_F: np.ndarray  # int64: s ≥ 0 is row s of ones_ON; s < 0 is row -1 - s of offsets_MN
    ones_ON: np.ndarray  # int32
    offsets_MN: np.ndarray  # int32 [M, N + 1], into values_V
    values_V: np.ndarray  # int32
    weights_V: np.ndarray  # float32, with the pooling in them
    numeric_DN: np.ndarray  # float32, as the towers take them


@dataclass(frozen=True)
class RowGroupData:
    """A checked row group in the order in which it is fed, so that a step's share is one slice of each array."""

    offsets_R: np.ndarray  # int64 [R + 1]: the impressions of row r are offsets_R[r] to offsets_R[r + 1]
    context: Packed
    impression: Packed
    labels_LI: np.ndarray  # int8, in the order of Columns.labels
    impression_id_I: np.ndarray  # int64
    group_id_R: np.ndarray  # int64, NO_GROUP where missing
    context_id_R: list[str]


def check_schema(schema: pa.Schema, columns: Columns, where: str) -> None:
    """InputError unless the file's columns have the types that the manifest's fields imply."""
    for name, wanted in columns.types().items():
        position = schema.get_field_index(name)
        found = schema.field(position).type if position >= 0 else None
        if pa.types.is_list(wanted):  # the list's item is called item or element, by writer
            same = found is not None and pa.types.is_list(found) and found.value_type == wanted.value_type
        else:
            same = found == wanted
        if not same:
            said = "is missing" if found is None else f"has type {found}"
            raise InputError(
                f"{where}, column {name} {said} where the manifest's fields imply {wanted}; run jobs.preprocess again."
            )


def pack(
    table: pa.Table,
    columns: Columns,
    counts: RowGroup,
    where: str,
    *,
    shuffle_key: tuple[int, int, int] | None = None,
    clicked_only: bool = False,
) -> RowGroupData:
    """Check `table`, one row group of which the manifest says `counts`, and pack it in the order of `shuffle_key`.

    `clicked_only` keeps the clicked impressions and their contexts. Raises InputError with `where` (file and row
    group), the column and what was found in it.
    """
    source = _Source(table, where)
    if table.num_rows != counts.rows:
        raise source.error("context_id", f"{table.num_rows} rows, and the manifest says {counts.rows}")
    impression_id_I, offsets_R = source.lists("impression_id")
    if len(impression_id_I) != counts.impressions:
        raise source.error(
            "impression_id", f"{len(impression_id_I)} impressions, and the manifest says {counts.impressions}"
        )
    source.offsets_R = offsets_R
    labels_LI = _checked_labels(source, columns.labels, counts)
    order_R = np.arange(counts.rows) if shuffle_key is None else permutation(shuffle_key, counts.rows)
    order = _all_of(order_R, offsets_R)
    if clicked_only:
        order = _clicked_of(order_R, offsets_R, np.flatnonzero(labels_LI[columns.labels.index("click")]))
    group_id_R = source.array("group_id").fill_null(NO_GROUP).to_numpy()
    context_id_R = source.whole("context_id").to_pylist()
    return RowGroupData(
        offsets_R=order.offsets_R,
        context=_packed(source, columns, "context", order.row_R, order.row_R + 1),
        impression=_packed(source, columns, "impression", order.first_K, order.last_K),
        labels_LI=np.stack([_gathered(label_I, order.first_K, order.last_K) for label_I in labels_LI]),
        impression_id_I=_gathered(impression_id_I, order.first_K, order.last_K),
        group_id_R=group_id_R[order.row_R],
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
    return _Order(order_R, np.concatenate([[0], np.cumsum(last_K - first_K)]), first_K, last_K)


def _clicked_of(order_R: np.ndarray, offsets_R: np.ndarray, clicked: np.ndarray) -> _Order:
    """The impressions `clicked`, one run each, and the rows that have any."""
    ends_R = np.searchsorted(clicked, offsets_R)
    row_R = order_R[np.diff(ends_R)[order_R] > 0]
    first_K = _gathered(clicked, ends_R[row_R], ends_R[row_R + 1])
    clicks_R = ends_R[row_R + 1] - ends_R[row_R]
    return _Order(row_R, np.concatenate([[0], np.cumsum(clicks_R)]), first_K, first_K + 1)


def _checked_labels(source: "_Source", labels: Sequence[str], counts: RowGroup) -> list[np.ndarray]:
    promised = {"click": counts.clicks, "daction": counts.dactions, "conversion": counts.conversions}
    columns = []
    for label in labels:
        values = source.parallel(label)
        if len(values) and (values.min() < 0 or values.max() > 1):
            raise source.error(label, "a label that is neither 0 nor 1")
        if (found := int(values.sum(dtype=np.int64))) != promised[label]:
            raise source.error(label, f"{found} positives, and the manifest says {promised[label]}")
        columns.append(values)
    return columns


class _Source:
    """The columns of one row group as NumPy arrays over Arrow's own buffers, and the sentence for a wrong one."""

    def __init__(self, table: pa.Table, where: str) -> None:
        self._table, self._where = table, where
        self.offsets_R = np.zeros(1, np.int32)

    def error(self, column: str, found: str) -> InputError:
        return InputError(
            f"{self._where}, column {column}: {found}; the file is damaged or not this dataset's: "
            "run jobs.preprocess again."
        )

    def array(self, column: str) -> pa.Array:
        chunks = self._table.column(column)
        return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()

    def whole(self, column: str) -> pa.Array:
        """A column without nulls."""
        return self._no_nulls(column, self.array(column))

    def lists(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """The values of all rows, and int32 [R + 1] offsets into them."""
        values, offsets = self.values_and_offsets(self.whole(column))
        return self._no_nulls(column, values).to_numpy(zero_copy_only=len(values) > 0), offsets

    def values_and_offsets(self, array: pa.ListArray) -> tuple[pa.Array, np.ndarray]:
        """The values of all lists, nulls among them, and int32 [R + 1] offsets into them."""
        offsets = array.offsets.to_numpy()
        if not len(offsets):
            return array.values, np.zeros(1, np.int32)
        values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        return values, offsets - offsets[0] if offsets[0] else offsets

    def parallel(self, column: str) -> np.ndarray:
        """The values of a column that has one for each impression."""
        values, offsets = self.lists(column)
        self.check_parallel(column, offsets)
        return values

    def check_parallel(self, column: str, offsets: np.ndarray) -> None:
        if not np.array_equal(offsets, self.offsets_R):
            raise self.error(column, "lists of another length than impression_id's")

    def numbers(self, entry: ManifestField) -> np.ndarray:
        """float32 [N]: the inputs of a numeric field; a null is 0."""
        array = self.array(entry.name)
        if entry.scope == "impression":
            array, offsets = self.values_and_offsets(self._no_nulls(entry.name, array))
            self.check_parallel(entry.name, offsets)
        values = array.fill_null(0.0).to_numpy()
        if not np.isfinite(values).all():
            raise self.error(entry.name, "a value that is not finite (a missing one is null)")
        inputs = squashed(values, entry)
        if array.null_count:
            inputs[array.is_null().to_numpy(zero_copy_only=False)] = 0.0
        return inputs

    def bags(self, entry: ManifestField) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """values_V, offsets int32 [N + 1] of the bags, and weights_V of a field of arity many."""
        values, offsets = self.lists(entry.name)
        weights = None
        if entry.weighted:
            weights, weight_offsets = self.lists(f"{entry.name}__weight")
            if not np.array_equal(weight_offsets, offsets):
                raise self.error(f"{entry.name}__weight", f"lists of another length than {entry.name}'s")
            if len(weights) and not (np.isfinite(weights.min()) and np.isfinite(weights.max())):
                raise self.error(f"{entry.name}__weight", "a weight that is not finite")
        if entry.scope == "context":
            return values, offsets, weights
        lengths = self.parallel(f"{entry.name}__length")
        if len(lengths) and lengths.min() < 0:
            raise self.error(f"{entry.name}__length", f"the length {lengths.min()}")
        ends = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        if not np.array_equal(ends[self.offsets_R], offsets):
            raise self.error(f"{entry.name}__length", f"lengths that do not add up to those of {entry.name}'s lists")
        return values, ends.astype(np.int32), weights

    def check_indices(self, entry: ManifestField, values: np.ndarray) -> None:
        # As unsigned numbers, so that one maximum finds the negative ones too.
        if len(values) and int(values.view(np.uint32).max()) >= entry.num_rows:
            wrong = values[(values < 0) | (values >= entry.num_rows)][0]
            raise self.error(entry.name, f"the index {wrong}, outside 0 to {entry.num_rows - 1} of the vocabulary")

    def _no_nulls(self, column: str, array: pa.Array) -> pa.Array:
        if array.null_count:
            raise self.error(column, f"{array.null_count} nulls")
        return array


def _packed(source: _Source, columns: Columns, scope: str, first_K: np.ndarray, last_K: np.ndarray) -> Packed:
    """The fields of `scope`: the bags first_K to last_K of the row group, in this order."""
    fields = columns.of_scope(scope)
    ones = [entry for entry in fields if entry.arity == "one"]
    many = [entry for entry in fields if entry.arity == "many"]
    num_bags = int((last_K - first_K).sum())
    ones_ON = _empty((len(ones), num_bags), np.int32)
    for place, entry in enumerate(ones):
        values = source.whole(entry.name).to_numpy() if scope == "context" else source.parallel(entry.name)
        source.check_indices(entry, values)
        _gather(values, first_K, last_K, ones_ON[place])
    bags = [source.bags(entry) for entry in many]
    cuts = [(offsets[first_K], offsets[last_K]) for _, offsets, _ in bags]
    num_values_M = [int((stop_K - start_K).sum()) for start_K, stop_K in cuts]
    ends_M = np.cumsum([0, *num_values_M])
    if ends_M[-1] > np.iinfo(np.int32).max:
        raise source.error(many[0].name, f"{ends_M[-1]} values with the other fields', more than 2^31 - 1")
    offsets_MN = _empty((len(many), num_bags + 1), np.int32)
    values_V, weights_V = _empty((int(ends_M[-1]),), np.int32), _empty((int(ends_M[-1]),), np.float32)
    for place, (entry, (values, offsets, weights), (start_K, stop_K)) in enumerate(zip(many, bags, cuts, strict=True)):
        source.check_indices(entry, values)
        mine = slice(ends_M[place], ends_M[place + 1])
        _gather(values, start_K, stop_K, values_V[mine])
        if weights is None:
            weights_V[mine] = 1.0
        else:
            _gather(weights, start_K, stop_K, weights_V[mine])
        _gather_offsets(offsets, first_K, last_K, offsets_MN[place])
        if columns.pooling[entry.name] == "mean":
            divide = _divide_long if num_values_M[place] > LONG_BAG * num_bags else _divide_short
            divide(weights_V[mine], offsets_MN[place])
        offsets_MN[place] += np.int32(ends_M[place])
    numeric = columns.of_scope(scope, NUMERIC)
    numeric_DN = _empty((len(numeric), num_bags), np.float32)
    for place, entry in enumerate(numeric):
        _gather(source.numbers(entry), first_K, last_K, numeric_DN[place])
    slot = {entry.name: place for place, entry in enumerate(ones)}
    slot |= {entry.name: -1 - place for place, entry in enumerate(many)}
    slot_F = np.array([slot[entry.name] for entry in fields], np.int64)
    return Packed(slot_F, ones_ON, offsets_MN, values_V, weights_V, numeric_DN)


def _empty(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """np.empty from Arrow's memory pool, which keeps what it has: glibc gives large blocks back, to be faulted in again."""
    buffer = pa.allocate_buffer(math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _gathered(values: np.ndarray, first_K: np.ndarray, last_K: np.ndarray) -> np.ndarray:
    out = np.empty(int((last_K - first_K).sum()), values.dtype)
    _gather(values, first_K, last_K, out)
    return out


@njit(nogil=True, cache=True)
def _gather(values: np.ndarray, first_K: np.ndarray, last_K: np.ndarray, out: np.ndarray) -> None:
    """out: the runs [first_K[k], last_K[k]) of `values`, one after the other."""
    at = 0
    for run in range(len(first_K)):
        run_values = values[first_K[run] : last_K[run]]
        run_out = out[at : at + len(run_values)]
        for place in range(len(run_values)):  # from 0, or numba's test for negative indices keeps it from vectorizing
            run_out[place] = run_values[place]
        at += len(run_values)


@njit(nogil=True, cache=True)
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
