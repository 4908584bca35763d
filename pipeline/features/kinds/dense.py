"""Dense fields: a vector of `width` numbers, such as an embedding of an image or a text that another model has made.

    log      [0.25, -1.5, 3.0]    null or []         a list of another length, a null, NaN or ∞ in it
    column   0.25, -1.5, 3.0      NaN, NaN, NaN      the line is rejected: bad_feature

The towers take the vector as `width` inputs beside the embeddings: as it is, or with `standardize` (the default) each number
as (v − µ)/σ of its own place over the train split. A missing vector is zeros there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.features import FieldSettings
from pipeline.errors import InputError
from pipeline.features.kinds.field_kind import FieldKind
from pipeline.features.kinds.numeric import check_single

#: Every number of a line takes four bytes where the lines of a context meet, so a typing error should end here.
MAX_WIDTH = 4096


class Dense(FieldKind):
    """A vector without an embedding table."""

    what = "dense"
    settings = frozenset({"width", "standardize"})
    reads_numbers = True
    reads_vectors = True

    def check(self, where: str, settings: FieldSettings) -> None:
        check_single(where, settings, self.what, "vector")
        if settings.width is None:
            raise InputError(f"{where} is dense without a width; say how many numbers its vector has: width: 64.")
        if not 1 <= settings.width <= MAX_WIDTH:
            raise InputError(f"{where}.width={settings.width} is not between 1 and {MAX_WIDTH}.")

    def parameters(self, settings: FieldSettings) -> dict[str, Any]:
        return {"width": settings.width, "standardize": settings.standardize is not False}

    def needs_moments(self, parameters: Mapping[str, Any]) -> bool:
        return bool(parameters["standardize"])

    def num_numbers(self, parameters: Mapping[str, Any]) -> int:
        return int(parameters["width"])

    def num_rows(self, num_ids: int, parameters: Mapping[str, Any]) -> int:
        return 0

    def column(self, numbers: np.ndarray, parameters: Mapping[str, Any]) -> pa.Array:
        return pa.array(np.ascontiguousarray(numbers).reshape(-1))
