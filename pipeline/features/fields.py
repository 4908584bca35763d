"""The catalogue: which raw ids a log carries, what they are called, and how each is read.

The only module that knows raw ids; the names and ids themselves are data, in conf/features/*.yaml.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.dataset.kinds import CATEGORICAL, STORED_KINDS
from pipeline.dataset.manifest import ARITIES, LABELS, SCOPES
from pipeline.errors import InputError
from pipeline.features.kinds.categorical import MAX_IDS
from pipeline.features.kinds.field_kind import FieldKind
from pipeline.features.kinds.registry import FIELD_KINDS, field_kind

#: Settings that only some kinds of fields have.
_OF_KINDS = sorted(frozenset().union(*(kind.settings for kind in FIELD_KINDS.values())))
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
#: Columns of a dataset that are no field's (dataset.schema); what ends so stands beside a field's own column.
_RESERVED = ("context_id", "group_id", "impression_id", "timestamp", *LABELS)
_RESERVED_ENDINGS = ("__length", "__weight")


@dataclass(frozen=True)
class Field:
    """One feature of the log."""

    name: str
    raw_id: str
    scope: str  # context | impression
    arity: str  # one | many
    weighted: bool
    min_count: int
    max_ids: int | None = None  # None: no limit
    kind: str = CATEGORICAL  # one of dataset.kinds
    hash_buckets: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of its kind, as in the manifest

    @property
    def is_counted(self) -> bool:
        """Whether its ids get their index from a vocabulary."""
        return self.kind_of_field.is_counted

    @property
    def stored(self) -> str:
        """The form of its column: INDEX, NUMBER or VECTOR."""
        return STORED_KINDS[self.kind].form

    @property
    def reads_numbers(self) -> bool:
        """Whether a line has a number of it, where others have ids."""
        return self.kind_of_field.reads_numbers

    @property
    def reads_lists(self) -> bool:
        """Whether a line has a list of it: ids, or the numbers of a vector."""
        return self.arity == "many" or self.kind_of_field.reads_vectors

    @property
    def num_numbers(self) -> int:
        """How many numbers a line has of it; 0 where it has ids."""
        return self.kind_of_field.num_numbers(self.parameters) if self.reads_numbers else 0

    @property
    def needs_moments(self) -> bool:
        """Whether the mean and standard deviation of its numbers are taken."""
        return self.kind_of_field.needs_moments(self.parameters)

    @property
    def kind_of_field(self) -> FieldKind:
        """What its kind does."""
        return field_kind(self.kind, self.hash_buckets)


@dataclass(frozen=True)
class NumberPlaces:
    """Where the numbers of a line go in a row that has room for those of several fields, side by side."""

    first_F: np.ndarray  # int64: where the numbers that the field's values bring begin, -1 where there are none
    width_F: np.ndarray  # int64: how many they are
    total: int


@dataclass(frozen=True)
class Catalogue:
    """The fields in configuration order; a field's position here is its number everywhere in the pipeline."""

    fields: tuple[Field, ...]
    group: str
    timed: bool = False  # impressions have a timestamp

    def of_scope(self, scope: str) -> tuple[Field, ...]:
        """Return the fields of one scope, in catalogue order."""
        return tuple(entry for entry in self.fields if entry.scope == scope)

    @property
    def measured(self) -> tuple[Field, ...]:
        """The fields of both scopes whose mean and standard deviation are taken."""
        return tuple(entry for entry in self.fields if entry.needs_moments)

    def places(self, chosen: Sequence[Field]) -> list[int]:
        """Return for each field of the catalogue its position in `chosen`, -1 where it is not there."""
        return [chosen.index(entry) if entry in chosen else -1 for entry in self.fields]

    def number_places(self, chosen: Sequence[Field]) -> NumberPlaces:
        """Lay out the numbers of the fields `chosen`, in their order, by the field whose values bring them."""
        widths = [entry.num_numbers for entry in chosen]
        ends = np.cumsum([0, *widths])
        place_F = np.array(self.places([self.source_of(entry) for entry in chosen]), np.int64)
        has_F = place_F >= 0
        first_F, width_F = np.where(has_F, ends[place_F], -1), np.where(has_F, np.array([*widths, 0])[place_F], 0)
        return NumberPlaces(first_F, width_F, int(ends[-1]))

    def read_fields(self, scope: str) -> tuple[Field, ...]:
        """Return the fields that the features of a raw line are read as: each raw id once, as ids where a field takes its ids."""
        return tuple(entry for entry in self.of_scope(scope) if self.source_of(entry) is entry)

    def source_of(self, entry: Field) -> Field:
        """Return the field whose values bring those of `entry`: itself, but for a number behind another field of its raw id.

        That is the one that takes the ids, or else the first one that takes the number.
        """
        if self.timed or not entry.reads_numbers:  # the tables of an event log have columns, which many may read
            return entry
        same = [other for other in self.fields if other.raw_id == entry.raw_id]
        return next((other for other in same if not other.reads_numbers), same[0])

    def __getitem__(self, name: str) -> Field:
        return next(entry for entry in self.fields if entry.name == name)


def catalogue(settings: FeaturesSettings, min_count: int, timed: bool = False, max_ids: int | None = None) -> Catalogue:
    """Check `settings` and return the catalogue; `min_count` and `max_ids` serve fields that set none of their own.

    Raises InputError for an unknown word, a name that is no identifier or a column's of ours, a raw id used twice (but
    for fields of other kinds and the same scope), a weight on a field of arity one, a setting of vocabularies on a field
    that has none, or a group that is no context field.
    """
    if not settings.fields:
        raise InputError("features.fields is empty; choose a catalogue, for example features=aliccp.")
    entries = [_checked_field(name, entry, min_count, max_ids, timed) for name, entry in settings.fields.items()]
    for number, entry in enumerate(entries):
        for other in entries[:number]:
            if other.raw_id == entry.raw_id and (other.kind == entry.kind or other.scope != entry.scope):
                raise InputError(
                    f"features.fields.{entry.name}.raw_id={entry.raw_id} already belongs to {other.name}; every field "
                    "needs a raw id of its own, but for fields of different kinds and the same scope."
                )
    contexts = [
        entry.name for entry in entries if entry.scope == "context" and entry.arity == "one" and not entry.reads_numbers
    ]
    if settings.group and settings.group not in contexts:
        raise InputError(
            f"features.group={settings.group} is not a categorical context field of arity one; choose one of {', '.join(contexts)}."
        )
    return Catalogue(tuple(entries), settings.group, timed)


def _checked_field(name: str, entry: FieldSettings, min_count: int, max_ids: int | None, timed: bool) -> Field:
    if not _NAME.match(name):
        raise InputError(f"features.fields has the name {name!r}; use lower-case letters, digits and underscores.")
    if name in _RESERVED or name.endswith(_RESERVED_ENDINGS):
        raise InputError(
            f"features.fields.{name} has the name of a column that every dataset has ({', '.join(_RESERVED)}, and what ends in "
            f"{' or '.join(_RESERVED_ENDINGS)}); call the field something else, such as item_{name.strip('_')}: "
            f"raw_id={entry.raw_id} stays what the log calls it."
        )
    words: Mapping[str, tuple[str, tuple[str, ...]]] = {
        "scope": (entry.scope, SCOPES),
        "arity": (entry.arity, ARITIES),
        "kind": (entry.kind, tuple(FIELD_KINDS)),
    }
    for key, (value, allowed) in words.items():
        if value not in allowed:
            raise InputError(f"features.fields.{name}.{key}={value} is not one of {', '.join(allowed)}.")
    _check_kind(name, entry, timed)
    if entry.weighted and entry.arity == "one":
        raise InputError(
            f"features.fields.{name} is weighted with arity one; only a field of arity many carries weights."
        )
    count = min_count if entry.min_count is None else entry.min_count
    if count < 1:
        raise InputError(f"features.fields.{name}.min_count={count} is below 1; 1 keeps every id.")
    most = max_ids if entry.max_ids is None else entry.max_ids
    if most is not None and not 1 <= most <= MAX_IDS:
        raise InputError(
            f"features.fields.{name}.max_ids={most} is not between 1 and {MAX_IDS}; leave it out (or null) to keep all."
        )
    parameters = field_kind(entry.kind, entry.hash_buckets).parameters(entry)
    return Field(
        name, str(entry.raw_id), entry.scope, entry.arity, entry.weighted, count, most, entry.kind, entry.hash_buckets,
        parameters,
    )  # fmt: skip


def _check_kind(name: str, entry: FieldSettings, timed: bool) -> None:
    """Raise InputError where a setting is wrong for the kind of the field, or belongs to another kind."""
    kind, where = field_kind(entry.kind, entry.hash_buckets), f"features.fields.{name}"
    kind.check(where, entry)
    if kind.reads_vectors and not timed:
        raise InputError(
            f"{where} is {kind.what}, and a feature in the layout of Ali-CCP is one id with one number; a vector is a list "
            "column of an event log (source=events)."
        )
    unset = FieldSettings(entry.raw_id, entry.scope)
    for key in _OF_KINDS:
        value = getattr(entry, key)
        if key not in kind.settings and value != getattr(unset, key):
            takers = [other for other, of in FIELD_KINDS.items() if key in of.settings]
            raise InputError(
                f"{where}.{key}={value} is for a field of kind {' or '.join(takers)}, and the field is {kind.what}; "
                "leave it out."
            )
