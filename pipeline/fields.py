"""The catalogue: which raw ids a log carries, what they are called, and how each is read.

The only module that knows raw ids; the names and ids themselves are data, in conf/features/*.yaml.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.manifest import InputError

SCOPES = ("context", "impression")
ARITIES = ("one", "many")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


@dataclass
class FieldSettings:
    """One entry of `features.fields` in the configuration."""

    raw_id: str
    scope: str
    arity: str = "one"
    weighted: bool = False
    min_count: int | None = None  # None: vocabulary.min_count


@dataclass
class FeaturesSettings:
    """The group `features`: the fields of the log by name, and the one behind group_id."""

    fields: dict[str, FieldSettings] = field(default_factory=dict)
    group: str = ""  # the field whose raw id becomes group_id (the user), or empty


@dataclass(frozen=True)
class Field:
    """One feature of the log."""

    name: str
    raw_id: str
    scope: str  # context | impression
    arity: str  # one | many
    weighted: bool
    min_count: int


@dataclass(frozen=True)
class Catalogue:
    """The fields in configuration order; a field's position here is its number everywhere in the pipeline."""

    fields: tuple[Field, ...]
    group: str
    timed: bool = False  # impressions have a timestamp

    def of_scope(self, scope: str) -> tuple[Field, ...]:
        """The fields of one scope, in catalogue order."""
        return tuple(entry for entry in self.fields if entry.scope == scope)

    def __getitem__(self, name: str) -> Field:
        return next(entry for entry in self.fields if entry.name == name)


def catalogue(settings: FeaturesSettings, min_count: int, timed: bool = False) -> Catalogue:
    """Check `settings` and give the catalogue; `min_count` serves fields that set none of their own.

    Raises InputError for an unknown word, a name that is no identifier, a raw id used twice, a weight on a field of
    arity one, or a group that is no context field.
    """
    if not settings.fields:
        raise InputError("features.fields is empty; choose a catalogue, for example features=aliccp.")
    entries = [_checked(name, entry, min_count) for name, entry in settings.fields.items()]
    owner: dict[str, str] = {}
    for entry in entries:
        if entry.raw_id in owner:
            raise InputError(
                f"features.fields.{entry.name}.raw_id={entry.raw_id} already belongs to {owner[entry.raw_id]}; "
                "every field needs a raw id of its own."
            )
        owner[entry.raw_id] = entry.name
    contexts = [entry.name for entry in entries if entry.scope == "context" and entry.arity == "one"]
    if settings.group and settings.group not in contexts:
        raise InputError(
            f"features.group={settings.group} is not a context field of arity one; choose one of {', '.join(contexts)}."
        )
    return Catalogue(tuple(entries), settings.group, timed)


def _checked(name: str, entry: FieldSettings, min_count: int) -> Field:
    if not _NAME.match(name):
        raise InputError(f"features.fields has the name {name!r}; use lower-case letters, digits and underscores.")
    words: Mapping[str, tuple[str, tuple[str, ...]]] = {
        "scope": (entry.scope, SCOPES),
        "arity": (entry.arity, ARITIES),
    }
    for key, (value, allowed) in words.items():
        if value not in allowed:
            raise InputError(f"features.fields.{name}.{key}={value} is not one of {', '.join(allowed)}.")
    if entry.weighted and entry.arity == "one":
        raise InputError(
            f"features.fields.{name} is weighted with arity one; only a field of arity many carries weights."
        )
    count = min_count if entry.min_count is None else entry.min_count
    if count < 1:
        raise InputError(f"features.fields.{name}.min_count={count} is below 1; 1 keeps every id.")
    return Field(name, str(entry.raw_id), entry.scope, entry.arity, entry.weighted, count)
