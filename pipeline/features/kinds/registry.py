"""Which kinds there are. A new one is a file beside this one, a line here, and a line in pipeline/dataset/kinds.py."""

from pipeline.dataset.kinds import BUCKETIZED, CATEGORICAL, DENSE, NUMERIC
from pipeline.features.kinds.bucketized import Bucketized
from pipeline.features.kinds.categorical import Categorical, Hashed
from pipeline.features.kinds.dense import Dense
from pipeline.features.kinds.field_kind import FieldKind
from pipeline.features.kinds.numeric import Numeric

#: features.fields.<name>.kind → its kind.
FIELD_KINDS: dict[str, FieldKind] = {
    CATEGORICAL: Categorical(),
    NUMERIC: Numeric(),
    BUCKETIZED: Bucketized(),
    DENSE: Dense(),
}
_HASHED_KIND = Hashed()


def field_kind(kind: str, hash_buckets: int) -> FieldKind:
    """Return the kind of a field; a categorical one with hash_buckets is hashed."""
    return _HASHED_KIND if kind == CATEGORICAL and hash_buckets else FIELD_KINDS[kind]
