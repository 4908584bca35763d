"""Bucketized fields: a number becomes the index of its bucket, and the model learns an embedding for each bucket.

    boundaries      1        5        20
    number     < 1  |  1 … 5  |  5 … 20 |  ≥ 20          missing
    index       2   |    3    |    4    |    5              0

A number on a boundary is in the bucket above it, as in numpy.digitize. The table has the two reserved rows of every table,
of which the second, out of vocabulary, is never used. Boundaries are compared as float32, which the numbers are.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.features import FieldSettings
from pipeline.dataset.kinds import bucket_of
from pipeline.dataset.manifest import MISSING, NUM_RESERVED_ROWS
from pipeline.errors import InputError
from pipeline.features.kinds.field_kind import FieldKind
from pipeline.features.kinds.numeric import check_single


class Bucketized(FieldKind):
    """A number with an embedding table of its buckets."""

    what = "bucketized"
    settings = frozenset({"boundaries"})
    reads_numbers = True

    def check(self, where: str, settings: FieldSettings) -> None:
        check_single(where, settings, self.what)
        if not settings.boundaries:
            raise InputError(
                f"{where} is bucketized without boundaries; give them, for example boundaries: [1, 5, 20]."
            )
        with np.errstate(over="ignore"):
            rounded = np.array(settings.boundaries, np.float32).tolist()
        for boundary, as_float32 in zip(settings.boundaries, rounded, strict=True):
            if not math.isfinite(as_float32):
                raise InputError(f"{where}.boundaries has {boundary}, which is no finite float32; leave it out.")
        for place, (below, above) in enumerate(pairwise(rounded)):
            if below >= above:
                raise InputError(
                    f"{where}.boundaries has {settings.boundaries[place]} before {settings.boundaries[place + 1]}; "
                    "they must rise, as float32 too."
                )

    def parameters(self, settings: FieldSettings) -> dict[str, Any]:
        return {"boundaries": list(settings.boundaries or ())}

    def num_rows(self, num_ids: int, parameters: Mapping[str, Any]) -> int:
        return len(parameters["boundaries"]) + 1 + NUM_RESERVED_ROWS

    def column(self, numbers: np.ndarray, parameters: Mapping[str, Any]) -> pa.Array:
        return pa.array(bucket_indices(numbers, parameters["boundaries"]))


def bucket_indices(numbers: np.ndarray, boundaries: list[float]) -> np.ndarray:
    """Return the int32 index of each number: MISSING for NaN, the first bucket for −∞, the last for ∞."""
    buckets = bucket_of({"boundaries": boundaries}, numbers)
    return np.where(np.isnan(numbers), MISSING, buckets + NUM_RESERVED_ROWS).astype(np.int32)
