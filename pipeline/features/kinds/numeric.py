"""Numeric fields: the number of a line itself, null where it is missing; the model takes tanh((v − µ)/σ) of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.features import FieldSettings
from pipeline.errors import InputError
from pipeline.features.kinds.field_kind import FieldKind


class Numeric(FieldKind):
    """A number without an embedding table."""

    what = "numeric"
    reads_numbers = True

    def check(self, where: str, settings: FieldSettings) -> None:
        check_single(where, settings, self.what)

    def needs_moments(self, parameters: Mapping[str, Any]) -> bool:
        return True

    def num_rows(self, num_ids: int, parameters: Mapping[str, Any]) -> int:
        return 0

    def column(self, numbers: np.ndarray, parameters: Mapping[str, Any]) -> pa.Array:
        return pa.array(numbers, mask=np.isnan(numbers))


def check_single(where: str, settings: FieldSettings, what: str, of: str = "number") -> None:
    """Raise InputError unless the field has one value a line: a number is the weight of a value, so it has no weight."""
    if settings.arity != "one" or settings.weighted:
        raise InputError(
            f"{where} is {what} with arity={settings.arity}, weighted={settings.weighted}; a {what} field is one "
            f"{of} a line, so leave both out."
        )
