"""Chunks: what both passes over the raw log do first: read a split, parse it, decide the split of each line."""

from dataclasses import dataclass

import numpy as np

from pipeline.chunks.line_columns import VALUES_END
from pipeline.chunks.sources import CONTEXT, SKELETON, SourceFile
from pipeline.features.fields import NumberPlaces
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
        """How many values each line has."""
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
    split_start: int = 0  # of the input split in the file
    fingerprint: int = 0  # of its lines (kernels.line_fingerprint); 0 where the source is no raw log


def numbers_of(parsed: Parsed, places: NumberPlaces) -> np.ndarray:
    """Return the numbers of each line, float32 [L, places.total].

    They are the weights of the first values of each field that has numbers, and NaN without one.
    The values of a field that has several numbers stand together on their line.
    """
    numbers = np.full((len(parsed.line_table), places.total), np.nan, np.float32)
    if places.total:
        _fill_numbers(parsed.line_table, parsed.field_V, parsed.weight_V, places.first_F, places.width_F, numbers)
    return numbers


@nb.njit(cache=True)
def _fill_numbers(line_table, field_V, weight_V, first_F, width_F, numbers):  # type: ignore[no-untyped-def]
    """Fill numbers[line, first_F[f]:][:width_F[f]] with the first values of field f.

    field_V    3   3   3   5   5   …       first_F[3] = 0, width_F[3] = 3;  first_F[5] = 3, width_F[5] = 1
    numbers    v0  v1  v2  v3              v4 is the second of a field of one number: it is left out
    """
    value = 0
    for line in range(len(line_table)):
        end = line_table[line, VALUES_END]
        before = place = np.int64(-1)  # the field of the value before, and its place within the vector
        while value < end:
            field = np.int64(field_V[value])
            place = place + 1 if field == before else np.int64(0)
            before = field
            column = first_F[field] + place
            if first_F[field] >= 0 and place < width_F[field] and np.isnan(numbers[line, column]):
                numbers[line, column] = weight_V[value]
            value += 1
