"""Chunks, the input of both passes over the raw log: parsed lines, each with its split (train, validation or test)."""

from dataclasses import dataclass

import numpy as np

from pipeline.chunks.line_columns import VALUES_END
from pipeline.chunks.sources import CONTEXT, SKELETON, SourceFile
from pipeline.kernels.jit import nb

#: The scope of the features on a line of each table.
SCOPE_OF = {CONTEXT: "context", SKELETON: "impression"}


@dataclass(frozen=True)
class Parsed:
    """One chunk: `line_table` (see START …), and the values of line l at [VALUES_END of l-1, VALUES_END of l).

    Only good lines have values; `field_V` is the position in the catalogue.
    """

    line_table: np.ndarray  # int64 [L, LINE_COLUMNS]
    field_V: np.ndarray  # int16
    id_V: np.ndarray  # int64
    weight_V: np.ndarray  # float32

    @property
    def num_values_L(self) -> np.ndarray:
        """The number of values of each line."""
        return np.diff(self.line_table[:, VALUES_END], prepend=0)


@dataclass(frozen=True)
class Chunk:
    """A parsed chunk of a file, with the split of each line."""

    source: SourceFile
    offset: int  # of the chunk in the file
    text: bytes
    parsed: Parsed
    split_L: np.ndarray  # positions in manifest.SPLITS; TRAIN or TEST for a line without a readable key
    timestamp_L: np.ndarray | None = None  # int64, of the impressions of a timed log


def numbers_of(parsed: Parsed, column_F: np.ndarray, num_numbers: int) -> np.ndarray:
    """Return the numbers of each line, float32 [L, num_numbers].

    A number is the weight of a numeric field's first value, and NaN without one.

    `column_F` has the column of each field of the catalogue, -1 for a field that is not numeric.
    """
    numbers = np.full((len(parsed.line_table), num_numbers), np.nan, np.float32)
    if num_numbers:
        _fill_numbers(parsed.line_table, parsed.field_V, parsed.weight_V, column_F, numbers)
    return numbers


@nb.njit(cache=True)
def _fill_numbers(line_table, field_V, weight_V, column_F, numbers):  # type: ignore[no-untyped-def]
    value = 0
    for line in range(len(line_table)):
        end = line_table[line, VALUES_END]
        while value < end:
            column = column_F[field_V[value]]
            if column >= 0 and np.isnan(numbers[line, column]):
                numbers[line, column] = weight_V[value]
            value += 1
