"""The kinds of fields, as a dataset stores them: what both pipeline/ and training/ must know of a kind.

A field's column holds an index into its embedding table (INDEX), a number that goes into the towers itself (NUMBER), or as
many numbers as its parameter `width` says (VECTOR). Whoever reads a dataset asks for the form, not for the kind, so a new
kind of a known form changes no reader.
How pipeline/ makes the column stands in pipeline/features/kinds/.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

CATEGORICAL, NUMERIC, BUCKETIZED, DENSE = "categorical", "numeric", "bucketized", "dense"

INDEX, NUMBER, VECTOR = "index", "number", "vector"
FORMS = (INDEX, NUMBER, VECTOR)


@dataclass(frozen=True)
class StoredKind:
    """What a reader of a dataset must know of a kind of field."""

    form: str  # INDEX, NUMBER or VECTOR
    of_number: bool = False  # whether the log has one number of it a line
    table: str = ""  # a word for the rows of its embedding table, if they are no ids of a vocabulary
    #: (parameters of the field, index less the reserved ones) → the text that people read
    index_text: Callable[[Mapping[str, Any], int], str] | None = None
    #: (parameters, numbers as float32, none of them NaN) → index less the reserved ones; None: a raw number cannot be scored
    index_of: Callable[[Mapping[str, Any], np.ndarray], np.ndarray] | None = None


def _interval(parameters: Mapping[str, Any], bucket: int) -> str:
    """Say which numbers fall into a bucket of a bucketized field."""
    boundaries = parameters["boundaries"]
    if bucket == 0:
        return f"below {boundaries[0]:g}"
    if bucket == len(boundaries):
        return f"{boundaries[-1]:g} or more"
    return f"{boundaries[bucket - 1]:g} to below {boundaries[bucket]:g}"


def bucket_of(parameters: Mapping[str, Any], numbers: np.ndarray) -> np.ndarray:
    """Return the bucket of each number, from 0: boundaries are compared as float32, and belong to the bucket above."""
    return np.searchsorted(np.array(parameters["boundaries"], np.float32), numbers, side="right")


#: Kind of field → what a dataset has of it. Hashed fields are categorical ones with hash_buckets.
STORED_KINDS = {
    CATEGORICAL: StoredKind(INDEX),
    NUMERIC: StoredKind(NUMBER, of_number=True),
    BUCKETIZED: StoredKind(INDEX, of_number=True, table="buckets", index_text=_interval, index_of=bucket_of),
    DENSE: StoredKind(VECTOR),
}


def num_inputs(kind: str, parameters: Mapping[str, Any]) -> int:
    """Return how many numbers of a field of `kind` go into the towers themselves; 0 for one that has a table."""
    form = STORED_KINDS[kind].form
    return parameters["width"] if form == VECTOR else int(form == NUMBER)
