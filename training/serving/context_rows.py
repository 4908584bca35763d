"""Context rows as a dataset has them (Arrow) → encoded columns."""

# Shapes: B impressions, C contexts.

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.dataset.arrow_columns import array_of, flat, lengths
from pipeline.dataset.kinds import NUMBER, VECTOR
from pipeline.dataset.manifest import ManifestField
from pipeline.dataset.schema import check_types, schema_of


class Encoded(NamedTuple):
    """The arguments of `Scorer.predict_rows`."""

    contexts: dict[str, np.ndarray]
    impressions: dict[str, np.ndarray]
    context_of_impression: np.ndarray  # int64 [B]


def encode_rows(table: pa.Table | pa.RecordBatch, fields: Sequence[ManifestField]) -> Encoded:
    """Return the encoded columns of context rows. Raises InputError where a column is missing or of another type."""
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    wanted = schema_of(fields, (), timed=False)
    check_types(
        table.schema, {column.name: column.type for column in wanted if column.name not in _NOT_SCORED}, "The rows"
    )
    found: dict[str, dict[str, np.ndarray]] = {"context": {}, "impression": {}}
    for entry in fields:
        columns = found[entry.scope]
        columns[entry.name] = _values(table, entry)
        if entry.arity == "many":
            is_flat = entry.scope == "impression"
            columns[f"{entry.name}__length"] = (
                flat(table, f"{entry.name}__length").to_numpy() if is_flat else lengths(table, entry.name)
            )
        if entry.weighted:
            columns[f"{entry.name}__weight"] = flat(table, f"{entry.name}__weight").to_numpy()
    count_C = lengths(table, "impression_id")
    return Encoded(found["context"], found["impression"], np.repeat(np.arange(len(count_C)), count_C))


#: Columns that a dataset has and a score does not need.
_NOT_SCORED = ("context_id", "group_id")


def _values(table: pa.Table, entry: ManifestField) -> np.ndarray:
    values = flat(table, entry.name) if entry.stored != VECTOR else array_of(table, entry.name).flatten()
    if entry.stored == NUMBER:
        return values.to_numpy(zero_copy_only=False).astype(np.float32)  # a null becomes NaN
    found: np.ndarray = values.to_numpy()
    return found.reshape(-1, entry.num_inputs) if entry.stored == VECTOR else found
