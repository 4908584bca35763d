"""The columns of a dataset's files, and the type that each field has in them (docs/dataset.md).

pipeline/ writes this schema, and training/ compares every file with it before it reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from pipeline.dataset.kinds import NUMBER, VECTOR
from pipeline.errors import InputError


class StoredField(Protocol):
    """What decides a field's columns: a Field of the catalogue has it, and a ManifestField."""

    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def arity(self) -> str: ...
    @property
    def weighted(self) -> bool: ...
    @property
    def stored(self) -> str: ...


def schema_of(fields: Iterable[StoredField], labels: Sequence[str], timed: bool) -> pa.Schema:
    """Return the columns of a data file: the context's, the ids, time and labels of its impressions, the impressions'."""
    by_scope: dict[str, list[pa.Field]] = {"context": [], "impression": []}
    for entry in fields:
        by_scope[entry.scope] += columns_of(entry)
    columns = [
        pa.field("context_id", pa.string(), nullable=False),
        pa.field("group_id", pa.int64()),
        *by_scope["context"],
    ]
    columns += [_required("impression_id", pa.int64())]
    columns += [_required("timestamp", pa.int64())] if timed else []
    columns += [_required(label, pa.int8()) for label in labels]
    return pa.schema([*columns, *by_scope["impression"]])


def check_types(schema: pa.Schema, wanted: Mapping[str, pa.DataType], where: str) -> None:
    """Raise InputError unless a file has each column of `wanted` with its type."""
    for name, kind in wanted.items():
        position = schema.get_field_index(name)
        found = schema.field(position).type if position >= 0 else None
        if pa.types.is_list(kind):  # the list's item is called item or element, by writer
            same = found is not None and pa.types.is_list(found) and found.value_type == kind.value_type
        else:
            same = found == kind
        if not same:
            problem = "is missing" if found is None else f"has type {found}"
            raise InputError(
                f"{where}, column {name} {problem} where the manifest's fields imply {kind}; run jobs.preprocess again."
            )


def columns_of(entry: StoredField) -> list[pa.Field]:
    """Return the columns of one field: its values, and beside them their number and their weights where it has any.

    A column is required where it can be: one that cannot be null is read a sixth faster, for it has no level to decode.
    Numbers may be null, which means missing; indices have the reserved index 0 for that. A missing vector is `width` NaNs:
    so the vectors of a row's impressions stand flat in one list, each `width` numbers after the one before, and none is null.
    """
    is_list = entry.scope == "impression" or entry.arity == "many"
    if entry.stored == NUMBER:
        return [pa.field(entry.name, list_of(pa.float32(), nullable=True), nullable=False) if is_list else pa.field(entry.name, pa.float32())]  # fmt: skip
    if entry.stored == VECTOR:
        return [_required(entry.name, pa.float32())]
    found = [_required(entry.name, pa.int32()) if is_list else pa.field(entry.name, pa.int32(), nullable=False)]
    if entry.scope == "impression" and entry.arity == "many":
        found.append(_required(f"{entry.name}__length", pa.int32()))
    return found + ([_required(f"{entry.name}__weight", pa.float32())] if entry.weighted else [])


def list_of(element: pa.DataType, nullable: bool = False) -> pa.DataType:
    """Return the list type of a column; Parquet calls the items of a list `element`."""
    return pa.list_(pa.field("element", element, nullable=nullable))


def _required(name: str, element: pa.DataType) -> pa.Field:
    return pa.field(name, list_of(element), nullable=False)
