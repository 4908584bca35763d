"""Contexts and candidates of a request, as raw values → encoded columns: what preprocessing does to a log, for one page.

All ids of a scope are looked up by one call of the lookup tables that preprocessing uses.
"""

# Shapes: N contexts or candidates, V values.

import difflib
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from pipeline.dataset.kinds import INDEX, NUMBER, STORED_KINDS
from pipeline.dataset.lookup_table import Lookup
from pipeline.dataset.manifest import MISSING, NUM_RESERVED_ROWS, Manifest, ManifestField
from pipeline.errors import InputError, printable
from training.serving.context_rows import Encoded
from training.serving.values import (
    IdRule,
    numbers_of_values,
    numbers_or_missing,
    split_lists,
    vectors_of,
    wrong_value,
)

RawRecord = Mapping[str, Any]
_WHAT = {"context": "contexts", "impression": "candidates"}


class RequestEncoder:
    """The fields of a dataset, its vocabularies, and how its log writes ids."""

    def __init__(self, manifest: Manifest, lookup: Lookup) -> None:
        """Take the lookup tables of all fields, in the order of the manifest."""
        self._lookup, self._rule = lookup, IdRule.of(manifest)
        self._fields = {scope: list(enumerate(manifest.fields)) for scope in _WHAT}
        for scope, fields in self._fields.items():
            self._fields[scope] = [(number, entry) for number, entry in fields if entry.scope == scope]
        self._keys = {scope: _keys_of_fields(entry for _, entry in fields) for scope, fields in self._fields.items()}

    def encode(self, contexts: Sequence[RawRecord], candidates: Sequence[Sequence[RawRecord]]) -> Encoded:
        """Encode a request. Raises InputError for a value that the log could not have, and for a context without candidates."""
        for what, given in (("contexts", contexts), ("candidates", candidates)):
            if not isinstance(given, list | tuple):
                raise InputError(f"{what} is {type(given).__name__}; give a list of objects.")
        if not contexts or len(contexts) != len(candidates):
            raise InputError(
                f"There are {len(contexts)} contexts and candidates for {len(candidates)}; give a list for each."
            )
        for number, of_context in enumerate(candidates):
            if not isinstance(of_context, list | tuple):
                raise InputError(f"candidates is {type(of_context).__name__}; give a list of objects.")
            if not of_context:
                where = f"[{number}]" if len(candidates) > 1 else ""
                raise InputError(f"candidates{where} is empty; give one candidate or more.")
        count_C = np.fromiter(map(len, candidates), np.int64, len(candidates))
        flat = candidates[0] if len(candidates) == 1 else list(chain.from_iterable(candidates))
        return Encoded(
            self._columns("context", contexts),
            self._columns("impression", flat),
            np.repeat(np.arange(len(count_C)), count_C),
        )

    def _columns(self, scope: str, records: Sequence[RawRecord]) -> dict[str, np.ndarray]:
        self._check_keys(scope, records)
        columns: dict[str, np.ndarray] = {}
        ids: list[list[Any]] = []  # of each field with a vocabulary or buckets of hashes
        looked_up: list[
            tuple[int, ManifestField, np.ndarray | None]
        ] = []  # and where they are there, if not everywhere
        for number, entry in self._fields[scope]:
            values = _column_of_records(records, entry.name)
            if entry.stored == INDEX and not STORED_KINDS[entry.kind].of_number:
                is_there = None
                if entry.arity == "many":
                    columns[f"{entry.name}__length"], values = split_lists(values, entry.name, "ids")
                    self._check_gaps(entry, values)
                    if entry.weighted:
                        columns[f"{entry.name}__weight"] = _weights(entry, records, columns[f"{entry.name}__length"])
                elif (found := self._rule.without_missing(values)) is not None:
                    values, is_there = found
                ids.append(values)
                looked_up.append((number, entry, is_there))
            elif entry.stored == INDEX:
                columns[entry.name] = _rows_of_buckets(entry, numbers_or_missing(values, entry.name))
            elif entry.stored == NUMBER:
                columns[entry.name] = numbers_or_missing(values, entry.name)
            else:
                columns[entry.name] = vectors_of(values, entry.name, entry.num_inputs)
        return columns | self._looked_up(looked_up, ids)

    def _looked_up(
        self, fields: Sequence[tuple[int, ManifestField, np.ndarray | None]], ids: Sequence[list[Any]]
    ) -> dict[str, np.ndarray]:
        if not fields:
            return {}
        count = [len(of_field) for of_field in ids]
        field_V = np.repeat(np.array([number for number, *_ in fields]), count)
        id_V = self._rule.ids_of(list(chain.from_iterable(ids)))
        if id_V is None:
            each = [
                self._rule.checked_ids(of_field, entry.name)
                for (_, entry, _), of_field in zip(fields, ids, strict=True)
            ]
            id_V = np.concatenate(each)
        index_V = self._lookup.indices_of(field_V, id_V)
        columns: dict[str, np.ndarray] = {}
        stop = 0
        for (_, entry, is_there), length in zip(fields, count, strict=True):
            start, stop = stop, stop + length
            columns[entry.name] = index_V[start:stop]
            if is_there is not None:
                columns[entry.name] = np.full(len(is_there), MISSING, np.int32)
                columns[entry.name][is_there] = index_V[start:stop]
        return columns

    def _check_keys(self, scope: str, records: Sequence[RawRecord]) -> None:
        keys = self._keys[scope]
        for record in records:
            if type(record) is not dict and not isinstance(record, Mapping):  # the first takes a tenth of the second
                raise InputError(f"{_WHAT[scope]} has {type(record).__name__} in it; each is an object of fields.")
            if not record.keys() <= keys:
                raise self._unknown(scope, next(key for key in record if key not in keys))

    def _unknown(self, scope: str, key: Any) -> InputError:
        other = "impression" if scope == "context" else "context"
        if key in self._keys[other]:
            return InputError(f"{key} is a field of {_WHAT[other]}, and stands in {_WHAT[scope]}; move it there.")
        name = printable(str(key))[:60]
        near = difflib.get_close_matches(name, self._keys[scope], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(sorted(self._keys[scope]))}."
        return InputError(f"{name} is no field of {_WHAT[scope]}; {hint}")

    def _check_gaps(self, entry: ManifestField, values: Sequence[Any]) -> None:
        """Raise InputError for a missing value within a list: the log's line would be a bad_feature."""
        nulls = self._rule.nulls
        if None in values or (nulls and not nulls.isdisjoint(value for value in values if isinstance(value, str))):
            wrong = next(value for value in values if self._rule.is_missing(value))
            raise wrong_value(entry.name, wrong, "means missing, and stands in a list; leave it out")


def _column_of_records(records: Sequence[RawRecord], name: str) -> list[Any]:
    """Return the value of each record, None where it has none."""
    try:
        return list(map(itemgetter(name), records))
    except KeyError:
        return [record.get(name) for record in records]


def _keys_of_fields(entries: Any) -> frozenset[str]:
    """Return the keys that a record may have."""
    found: set[str] = set()
    for entry in entries:
        found |= {entry.name, f"{entry.name}__weight"} if entry.weighted else {entry.name}
    return frozenset(found)


def _weights(entry: ManifestField, records: Sequence[RawRecord], length_N: np.ndarray) -> np.ndarray:
    """Return float32 [V]. Raises InputError unless there is one for each value: without them the score would be another."""
    name = f"{entry.name}__weight"
    weight_lengths, weights = split_lists(_column_of_records(records, name), name, "weights")
    if not np.array_equal(weight_lengths, length_N):
        place = int(np.flatnonzero(weight_lengths != length_N)[0])
        raise InputError(
            f"{name} has {weight_lengths[place]} weights, and {entry.name} has {length_N[place]} values; give one for each."
        )
    return numbers_of_values(weights, name)


def _rows_of_buckets(entry: ManifestField, numbers: np.ndarray) -> np.ndarray:
    """Return the int32 row of each number of a field that has a table of numbers' buckets."""
    index_of = STORED_KINDS[entry.kind].index_of
    if index_of is None:
        raise InputError(
            f"{entry.name} is {entry.kind}, and pipeline/dataset/kinds.py has no index_of for it; add one, or give rows "
            "(predict_rows)."
        )
    is_missing = np.isnan(numbers)
    buckets = index_of(entry.parameters, np.where(is_missing, np.float32(0), numbers))
    return np.where(is_missing, MISSING, buckets + NUM_RESERVED_ROWS).astype(np.int32)
