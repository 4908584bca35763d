"""The group features of the configuration: the fields of a log."""

from dataclasses import dataclass, field

from pipeline.dataset.kinds import CATEGORICAL


@dataclass
class FieldSettings:
    """One entry of `features.fields` in the configuration."""

    raw_id: str
    scope: str
    arity: str = "one"
    weighted: bool = False
    min_count: int | None = None  # None: vocabulary.min_count
    max_ids: int | None = None  # None: vocabulary.max_ids
    kind: str = CATEGORICAL  # numeric: the value counts, not the id
    hash_buckets: int = 0  # not 0: ids are hashed into so many rows of the table, and there is no vocabulary


@dataclass
class FeaturesSettings:
    """The group `features`: the fields of the log by name, and the one behind group_id."""

    fields: dict[str, FieldSettings] = field(default_factory=dict)
    group: str = ""  # the field whose raw id becomes group_id (the user), or empty
