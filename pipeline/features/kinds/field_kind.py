"""The interface of a kind of field: what the steps of preprocessing ask it, instead of asking which kind it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.features import FieldSettings
from pipeline.dataset.manifest import NUM_RESERVED_ROWS


class FieldKind:
    """How a field goes from the log into its column.

    Two steps carry a value, and both know two things only: ids (int64, looked up as an index) and numbers (float32, NaN
    where missing). `reads_numbers` says which a field takes from the log; `column` makes the dataset's column of numbers.
    A vector is `num_numbers` numbers, all of them there or all missing.
    """

    what: str  # in error messages
    #: The settings of FieldSettings that not every kind has, and this one does.
    settings: frozenset[str] = frozenset()
    reads_numbers = False
    reads_vectors = False  # its numbers are a list in the log; a kind that reads vectors reads numbers
    is_counted = False  # its ids get their index from a vocabulary, which the first pass counts

    def check(self, where: str, settings: FieldSettings) -> None:
        """Raise InputError, beginning with `where`, for settings that are wrong for this kind."""

    def parameters(self, settings: FieldSettings) -> dict[str, Any]:
        """Return what of the settings belongs into the manifest, because readers or later runs need it."""
        del settings
        return {}

    def needs_moments(self, parameters: Mapping[str, Any]) -> bool:
        """Say whether the first pass takes the mean and standard deviation of each of its numbers."""
        del parameters
        return False

    def num_numbers(self, parameters: Mapping[str, Any]) -> int:
        """Return how many numbers a line has of it; only of a kind that reads numbers."""
        del parameters
        return 1

    def num_rows(self, num_ids: int, parameters: Mapping[str, Any]) -> int:
        """Return the rows of the embedding table, of a field whose vocabulary has `num_ids` ids; 0 without a table."""
        del parameters
        return num_ids + NUM_RESERVED_ROWS

    def column(self, numbers: np.ndarray, parameters: Mapping[str, Any]) -> pa.Array:
        """Return the column of these numbers: float32 [N], NaN where missing; only of a kind that reads numbers.

        A kind that reads vectors gets [N, num_numbers] and returns the numbers of all N vectors, one after the other.
        """
        raise NotImplementedError
