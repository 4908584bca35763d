"""The group features of the configuration: the fields of a log."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.dataset.kinds import CATEGORICAL

#: Of FieldSettings: manifests that were written before them stay what they are, byte for byte.
_LATER_SETTINGS = ("boundaries", "width", "standardize")


@dataclass
class FieldSettings:
    """One entry of `features.fields` in the configuration."""

    raw_id: str
    scope: str
    arity: str = "one"
    weighted: bool = False
    min_count: int | None = None  # None: vocabulary.min_count
    max_ids: int | None = None  # None: vocabulary.max_ids
    kind: str = CATEGORICAL  # numeric: a line's number, not its id; bucketized: the number's bucket; dense: a vector
    hash_buckets: int = 0  # not 0: ids are hashed into so many rows of the table, and there is no vocabulary
    boundaries: list[float] | None = None  # of the buckets of a bucketized field, rising
    width: int | None = None  # of a dense field: how many numbers its vector has
    standardize: bool | None = None  # of a dense field: (v − µ)/σ of each number; null: true


@dataclass
class FeaturesSettings:
    """The group `features`: the fields of the log by name, and the one behind group_id."""

    fields: dict[str, FieldSettings] = field(default_factory=dict)
    group: str = ""  # the field whose raw id becomes group_id (the user), or empty

    def determining(self) -> dict[str, Any]:
        """Return the settings as they stand in the manifest: settings that came later only where they are given."""
        everything = asdict(self)
        for entry in everything["fields"].values():
            for name in _LATER_SETTINGS:
                if entry[name] is None:
                    del entry[name]
        return everything
