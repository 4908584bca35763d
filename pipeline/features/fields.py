"""The catalogue: which raw ids a log carries, what they are called, and how each is read.

The only module that knows raw ids; the names and ids themselves are data, in conf/features/*.yaml.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.dataset.kinds import CATEGORICAL, NUMERIC, STORED_AS
from pipeline.dataset.manifest import LABELS, NUM_RESERVED_ROWS
from pipeline.errors import InputError

SCOPES = ("context", "impression")
ARITIES = ("one", "many")
KINDS = (CATEGORICAL, NUMERIC)
_MOST_ROWS = 2**31 - 1 - NUM_RESERVED_ROWS  # an index is an int32
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
    kind: str = CATEGORICAL  # categorical | numeric
    hash_buckets: int = 0

    @property
    def is_counted(self) -> bool:
        """Whether its ids get their index from a vocabulary."""
        return self.kind == CATEGORICAL and not self.hash_buckets

    @property
    def stored(self) -> str:
        """The form of its column: INDEX or NUMBER."""
        return STORED_AS[self.kind]

    @property
    def is_numeric(self) -> bool:
        """Whether a line has a number of it, where others have ids."""
        return self.kind == NUMERIC


@dataclass(frozen=True)
class Catalogue:
    """The fields in configuration order; a field's position here is its number everywhere in the pipeline."""

    fields: tuple[Field, ...]
    group: str
    timed: bool = False  # impressions have a timestamp

    def of_scope(self, scope: str) -> tuple[Field, ...]:
        """The fields of one scope, in catalogue order."""
        return tuple(entry for entry in self.fields if entry.scope == scope)

    @property
    def numerics(self) -> tuple[Field, ...]:
        """The numeric fields of both scopes."""
        return tuple(entry for entry in self.fields if entry.is_numeric)

    def places(self, chosen: Sequence[Field]) -> list[int]:
        """For each field of the catalogue its position in `chosen`, -1 where it is not there."""
        return [chosen.index(entry) if entry in chosen else -1 for entry in self.fields]

    def number_places(self, numerics: Sequence[Field]) -> list[int]:
        """For each field the position in `numerics` of the one that its values bring, -1 for none."""
        return self.places([self.source_of(entry) for entry in numerics])

    def read_fields(self, scope: str) -> tuple[Field, ...]:
        """The fields that the features of a raw line are read as: each raw id once, as ids where a field takes its ids."""
        return tuple(entry for entry in self.of_scope(scope) if self.source_of(entry) is entry)

    def source_of(self, entry: Field) -> Field:
        """The field whose values bring those of `entry`: itself, but for a number behind the ids of another field."""
        if self.timed or not entry.is_numeric:  # the tables of an event log have columns, which many may read
            return entry
        others = (other for other in self.fields if other.raw_id == entry.raw_id and not other.is_numeric)
        return next(others, entry)

    def __getitem__(self, name: str) -> Field:
        return next(entry for entry in self.fields if entry.name == name)


def catalogue(settings: FeaturesSettings, min_count: int, timed: bool = False, max_ids: int | None = None) -> Catalogue:
    """Check `settings` and give the catalogue; `min_count` and `max_ids` serve fields that set none of their own.

    Raises InputError for an unknown word, a name that is no identifier or a column's of ours, a raw id used twice (but for a numeric beside a
    categorical field of its scope), a weight on a field of arity one, a setting of vocabularies on a field that has none, or a
    group that is no context field.
    """
    if not settings.fields:
        raise InputError("features.fields is empty; choose a catalogue, for example features=aliccp.")
    entries = [_checked(name, entry, min_count, max_ids) for name, entry in settings.fields.items()]
    for number, entry in enumerate(entries):
        for other in entries[:number]:
            if other.raw_id == entry.raw_id and (other.kind == entry.kind or other.scope != entry.scope):
                raise InputError(
                    f"features.fields.{entry.name}.raw_id={entry.raw_id} already belongs to {other.name}; every field "
                    "needs a raw id of its own, but for a numeric field beside a categorical one of the same scope."
                )
    contexts = [
        entry.name for entry in entries if entry.scope == "context" and entry.arity == "one" and not entry.is_numeric
    ]
    if settings.group and settings.group not in contexts:
        raise InputError(
            f"features.group={settings.group} is not a categorical context field of arity one; choose one of {', '.join(contexts)}."
        )
    return Catalogue(tuple(entries), settings.group, timed)


def _checked(name: str, entry: FieldSettings, min_count: int, max_ids: int | None) -> Field:
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
        "kind": (entry.kind, KINDS),
    }
    for key, (value, allowed) in words.items():
        if value not in allowed:
            raise InputError(f"features.fields.{name}.{key}={value} is not one of {', '.join(allowed)}.")
    _check_kind(name, entry)
    if entry.weighted and entry.arity == "one":
        raise InputError(
            f"features.fields.{name} is weighted with arity one; only a field of arity many carries weights."
        )
    count = min_count if entry.min_count is None else entry.min_count
    if count < 1:
        raise InputError(f"features.fields.{name}.min_count={count} is below 1; 1 keeps every id.")
    most = max_ids if entry.max_ids is None else entry.max_ids
    if most is not None and not 1 <= most <= _MOST_ROWS:
        raise InputError(
            f"features.fields.{name}.max_ids={most} is not between 1 and {_MOST_ROWS}; leave it out (or null) to keep all."
        )
    return Field(
        name, str(entry.raw_id), entry.scope, entry.arity, entry.weighted, count, most, entry.kind, entry.hash_buckets
    )


def _check_kind(name: str, entry: FieldSettings) -> None:
    """InputError where settings of one kind of field stand on another."""
    if entry.kind == NUMERIC and (entry.arity != "one" or entry.weighted):
        raise InputError(
            f"features.fields.{name} is numeric with arity={entry.arity}, weighted={entry.weighted}; a numeric field is one "
            "number a line, so leave both out."
        )
    if not 0 <= entry.hash_buckets <= _MOST_ROWS:
        raise InputError(
            f"features.fields.{name}.hash_buckets={entry.hash_buckets} is not between 1 and {_MOST_ROWS}; "
            "0 or nothing keeps a vocabulary."
        )
    what = NUMERIC if entry.kind == NUMERIC else "hashed" if entry.hash_buckets else ""
    of_ids = {"min_count": entry.min_count, "max_ids": entry.max_ids}
    if entry.kind == NUMERIC:
        of_ids["hash_buckets"] = entry.hash_buckets or None
    for key, value in of_ids.items() if what else ():
        if value is not None:
            raise InputError(
                f"features.fields.{name}.{key}={value} is for ids that are counted, and the field is {what}; leave it out."
            )
