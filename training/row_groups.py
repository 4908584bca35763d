"""A row group as the feed wants it: checked, and packed into a few arrays from which any step can cut its share.

Readers trust nothing (DESIGN §4): what a row group holds is compared with what the manifest promises, once, as it is
read. FBGEMM, left alone, would log "setting idx to zero" and train on.
"""

# Shapes: R rows (contexts), I impressions, N bags of a scope (R or I), O fields of arity one, M of arity many, V values.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

import pipeline.numba_cache  # noqa: F401  (before numba)
from pipeline.manifest import InputError, ManifestField, RowGroup

# isort: split
from numba import njit

from training.batch import NO_GROUP
from training.plan import permutation

POOLINGS = ("sum", "mean")
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
            if entry.arity == "many" and pooling not in POOLINGS:
                raise InputError(
                    f"The pooling of {entry.name} is {pooling!r}; choose one of {', '.join(POOLINGS)} for every field "
                    "of arity many."
                )

    def of_scope(self, scope: str) -> tuple[ManifestField, ...]:
        """The fields of scope "context" or "impression", in catalogue order."""
        return tuple(entry for entry in self.fields if entry.scope == scope)

    def types(self) -> dict[str, pa.DataType]:
        """Every column that is read, with the type that DESIGN §4 gives it."""
        types: dict[str, pa.DataType] = {
            "context_id": pa.string(),
            "group_id": pa.int64(),
            "impression_id": INT64_LIST,
        }
        types |= dict.fromkeys(self.labels, INT8_LIST)
        for entry in self.fields:
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


@dataclass(frozen=True)
class RowGroupData:
    """A checked row group in file order, and the shuffled order of its rows."""

    order_R: np.ndarray  # int64: the rows in the order in which they are fed
    ends_R: np.ndarray  # int64: impressions up to and including each row of order_R
    offsets_R: np.ndarray  # int32 [R + 1]: the impressions of row r are offsets_R[r] to offsets_R[r + 1]
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


def pack(table: pa.Table, columns: Columns, counts: RowGroup, where: str) -> RowGroupData:
    """Check `table`, one row group of which the manifest says `counts`, and pack it in file order.

    Raises InputError with `where` (file and row group), the column and what was found in it.
    """
    source = _Source(table, where)
    if table.num_rows != counts.rows:
        raise source.error("context_id", f"{table.num_rows} rows where the manifest says {counts.rows}")
    impression_id_I, offsets_R = source.lists("impression_id")
    source.offsets_R = offsets_R
    if len(impression_id_I) != counts.impressions:
        raise source.error(
            "impression_id", f"{len(impression_id_I)} impressions where the manifest says {counts.impressions}"
        )
    labels_LI = np.empty((len(columns.labels), counts.impressions), np.int8)
    promised = {"click": counts.clicks, "daction": counts.dactions, "conversion": counts.conversions}
    for row, label in enumerate(columns.labels):
        labels_LI[row] = source.parallel(label)
        if len(impression_id_I) and (labels_LI[row].min() < 0 or labels_LI[row].max() > 1):
            raise source.error(label, "a label that is neither 0 nor 1")
        if (found := int(labels_LI[row].sum(dtype=np.int64))) != promised[label]:
            raise source.error(label, f"{found} positives where the manifest says {promised[label]}")
    group_id = source.array("group_id")
    return RowGroupData(
        order_R=np.arange(counts.rows),
        ends_R=offsets_R[1:].astype(np.int64),
        offsets_R=offsets_R,
        context=_packed(source, columns.of_scope("context"), columns.pooling, counts.rows),
        impression=_packed(source, columns.of_scope("impression"), columns.pooling, counts.impressions),
        labels_LI=labels_LI,
        impression_id_I=impression_id_I,
        group_id_R=group_id.fill_null(NO_GROUP).to_numpy(),
        context_id_R=source.whole("context_id").to_pylist(),
    )


def shuffled(data: RowGroupData, key: tuple[int, int, int]) -> RowGroupData:
    """`data` with its rows in the order that `key` draws."""
    order_R = permutation(key, len(data.order_R))
    return replace(data, order_R=order_R, ends_R=np.cumsum(np.diff(data.offsets_R)[order_R], dtype=np.int64))


def clicked(data: RowGroupData, click: int) -> RowGroupData:
    """`data`, in file order, with its clicked impressions alone; `click` is the place of that label."""
    kept = np.flatnonzero(data.labels_LI[click])
    offsets_R = np.searchsorted(kept, data.offsets_R).astype(np.int32)
    before = data.impression
    lengths_MN = np.diff(before.offsets_MN, axis=1)[:, kept]
    ends_MN = np.cumsum(lengths_MN, dtype=np.int64).reshape(lengths_MN.shape)
    offsets_MN = np.empty((len(lengths_MN), len(kept) + 1), np.int32)
    offsets_MN[:, 1:] = ends_MN
    offsets_MN[1:, 0], offsets_MN[:1, 0] = (ends_MN[:-1, -1] if len(kept) else 0), 0
    starts = before.offsets_MN[:, :-1][:, kept].ravel()
    places = np.repeat(starts - (ends_MN - lengths_MN).ravel(), lengths_MN.ravel()) + np.arange(int(lengths_MN.sum()))
    return replace(
        data,
        ends_R=offsets_R[1:].astype(np.int64),
        offsets_R=offsets_R,
        impression=Packed(
            before.slot_F, before.ones_ON[:, kept], offsets_MN, before.values_V[places], before.weights_V[places]
        ),
        labels_LI=data.labels_LI[:, kept],
        impression_id_I=data.impression_id_I[kept],
    )


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
        array = self.whole(column)
        offsets = array.offsets.to_numpy()
        if not len(offsets):
            return array.values.to_numpy(zero_copy_only=False), np.zeros(1, np.int32)
        values = self._no_nulls(column, array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))).to_numpy()
        return values, offsets - offsets[0] if offsets[0] else offsets

    def parallel(self, column: str) -> np.ndarray:
        """The values of a column that has one for each impression."""
        values, offsets = self.lists(column)
        if not np.array_equal(offsets, self.offsets_R):
            raise self.error(column, "lists of another length than impression_id's")
        return values

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


def _packed(source: _Source, fields: Sequence[ManifestField], pooling: Mapping[str, str], num_bags: int) -> Packed:
    ones = [entry for entry in fields if entry.arity == "one"]
    many = [entry for entry in fields if entry.arity == "many"]
    slot = {entry.name: place for place, entry in enumerate(ones)}
    slot |= {entry.name: -1 - place for place, entry in enumerate(many)}
    ones_ON = np.empty((len(ones), num_bags), np.int32)
    for place, entry in enumerate(ones):
        if entry.scope == "context":
            ones_ON[place] = source.whole(entry.name).to_numpy()
        else:
            ones_ON[place] = source.parallel(entry.name)
        source.check_indices(entry, ones_ON[place])
    bags = [source.bags(entry) for entry in many]
    num_values = sum(len(values) for values, _, _ in bags)
    if num_values > np.iinfo(np.int32).max:
        raise source.error(many[0].name, f"{num_values} values in all fields, more than 2^31 - 1")
    offsets_MN = np.empty((len(many), num_bags + 1), np.int32)
    values_V, weights_V = np.empty(num_values, np.int32), np.empty(num_values, np.float32)
    start = 0
    for place, (entry, (values, offsets, weights)) in enumerate(zip(many, bags, strict=True)):
        source.check_indices(entry, values)
        stop = start + len(values)
        np.add(offsets, start, out=offsets_MN[place])
        values_V[start:stop] = values
        weights_V[start:stop] = 1.0 if weights is None else weights
        if pooling[entry.name] == "mean":
            _divide_by_sum(weights_V, offsets_MN[place])
        start = stop
    slot_F = np.array([slot[entry.name] for entry in fields], np.int64)
    return Packed(slot_F, ones_ON, offsets_MN, values_V, weights_V)


@njit(nogil=True, cache=True)
def _divide_by_sum(weights_V: np.ndarray, offsets_N: np.ndarray) -> None:
    """w → w / Σ|w| over each bag [offsets_N[n], offsets_N[n + 1]); zeros where the sum is 0."""
    for bag in range(len(offsets_N) - 1):
        start, stop = offsets_N[bag], offsets_N[bag + 1]
        total = 0.0
        for place in range(start, stop):
            total += abs(weights_V[place])
        scale = 1.0 / total if total > 0 else 0.0
        for place in range(start, stop):
            weights_V[place] *= scale
