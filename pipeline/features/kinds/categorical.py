"""Categorical fields: an id becomes its index in a vocabulary, or, hashed, its bucket among `hash_buckets`."""

from pipeline.config.features import FieldSettings
from pipeline.dataset.manifest import NUM_RESERVED_ROWS
from pipeline.errors import InputError
from pipeline.features.kinds.field_kind import FieldKind

#: An index is an int32.
MAX_IDS = 2**31 - 1 - NUM_RESERVED_ROWS


class Categorical(FieldKind):
    """Ids with a vocabulary."""

    what = "categorical"
    settings = frozenset({"min_count", "max_ids", "hash_buckets"})
    is_counted = True


class Hashed(FieldKind):
    """Ids without a vocabulary: a categorical field with hash_buckets."""

    what = "hashed"
    settings = frozenset({"hash_buckets"})

    def check(self, where: str, settings: FieldSettings) -> None:
        if not 0 < settings.hash_buckets <= MAX_IDS:
            raise InputError(
                f"{where}.hash_buckets={settings.hash_buckets} is not between 1 and {MAX_IDS}; "
                "0 or nothing keeps a vocabulary."
            )
