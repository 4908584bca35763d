"""Read the columns of context rows (DESIGN §4) without the trainer's feed."""

import numpy as np
import pyarrow as pa


def array_of(table: pa.Table, name: str) -> pa.Array:
    """Return a column in one piece."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def flat(table: pa.Table, name: str) -> pa.Array:
    """Return the values of a column, out of their lists where it has any."""
    array = array_of(table, name)
    return array.flatten() if pa.types.is_list(array.type) else array


def lengths(table: pa.Table, name: str) -> np.ndarray:
    """Return int64 [N]: the number of values in each row of a list column."""
    return np.diff(array_of(table, name).offsets.to_numpy()).astype(np.int64)


def is_number(table: pa.Table, name: str) -> bool:
    """Say whether a field is numeric rather than an index."""
    kind = table.schema.field(name).type
    return pa.types.is_floating(getattr(kind, "value_type", kind))
