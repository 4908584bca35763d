"""What the feed reads of a dataset, and the types that the manifest's fields imply."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.dataset.manifest import CATEGORICAL, NUMERIC, ManifestField
from pipeline.errors import InputError
from training.feed.numeric import check_moments

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
            if entry.kind == NUMERIC:
                check_moments(entry)
            elif entry.arity == "many" and pooling not in POOLINGS:
                raise InputError(
                    f"The pooling of {entry.name} is {pooling!r}; choose one of {', '.join(POOLINGS)} for every field "
                    "of arity many."
                )

    def of_scope(self, scope: str, kind: str = CATEGORICAL) -> tuple[ManifestField, ...]:
        """The fields of `kind` and of scope "context" or "impression", in catalogue order."""
        return self._by_scope[scope, kind]

    @functools.cached_property
    def _by_scope(self) -> dict[tuple[str, str], tuple[ManifestField, ...]]:
        return {
            (scope, kind): tuple(entry for entry in self.fields if (entry.scope, entry.kind) == (scope, kind))
            for scope in ("context", "impression")
            for kind in (CATEGORICAL, NUMERIC)
        }

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
