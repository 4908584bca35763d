"""The columns that the feed reads of a dataset, and the types that the manifest's fields imply."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.dataset.kinds import FORMS, INDEX
from pipeline.dataset.manifest import ManifestField
from pipeline.dataset.schema import check_types, schema_of
from pipeline.errors import InputError
from training.feed.numeric import check_moments
from training.feed.settings import POOLINGS

#: The name among a batch's labels of an impression's importance weight.
IMPORTANCE = "importance"


@dataclass(frozen=True)
class Columns:
    """The fields that are read, in catalogue order, how each is pooled, and the labels."""

    fields: tuple[ManifestField, ...]
    pooling: Mapping[str, str]  # multi-valued field → sum | mean
    labels: tuple[str, ...]
    importance: bool = False  # a weight beside the labels: training.feed.sampling
    num_copies: int = 1  # of each scope's bags in a batch: training.model.own_tables

    def __post_init__(self) -> None:
        for entry in self.fields:
            pooling = self.pooling.get(entry.name)
            if entry.stored != INDEX:
                check_moments(entry)
            elif entry.arity == "many" and pooling not in POOLINGS:
                raise InputError(
                    f"The pooling of {entry.name} is {pooling!r}; choose one of {', '.join(POOLINGS)} for every "
                    "multi-valued field."
                )

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels of a batch: those that are read, and the weight."""
        return (*self.labels, IMPORTANCE) if self.importance else self.labels

    def of_scope(self, scope: str, stored: str = INDEX) -> tuple[ManifestField, ...]:
        """Return the fields of form `stored` and of scope "context" or "impression", in catalogue order."""
        return self._by_scope[scope, stored]

    def num_inputs(self, scope: str) -> int:
        """Return how many numbers of a context, or of an impression, go into the towers themselves."""
        return self._num_inputs[scope]

    @functools.cached_property
    def _num_inputs(self) -> dict[str, int]:
        return {
            scope: sum(entry.num_inputs for entry in self.fields if entry.scope == scope)
            for scope in ("context", "impression")
        }

    @functools.cached_property
    def _by_scope(self) -> dict[tuple[str, str], tuple[ManifestField, ...]]:
        return {
            (scope, stored): tuple(entry for entry in self.fields if (entry.scope, entry.stored) == (scope, stored))
            for scope in ("context", "impression")
            for stored in FORMS
        }

    def types(self) -> dict[str, pa.DataType]:
        """Return every column that is read, with its type."""
        return {column.name: column.type for column in schema_of(self.fields, self.labels, timed=False)}


def check_schema(schema: pa.Schema, columns: Columns, where: str) -> None:
    """Raise InputError unless the file's columns have the types that the manifest's fields imply."""
    check_types(schema, columns.types(), where)
