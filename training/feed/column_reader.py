"""One column of one row group, as the feed reads it: an interface, and its readable implementation by pyarrow.

`feed.decoder=pyarrow` reads every column as PyarrowColumn. `feed.decoder=pages`, the default, reads most of them as
ColumnPages (parquet_pages.py), which is faster, and the others as PyarrowColumn. A test holds both equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa


class DamagedColumn(Exception):
    """The bytes of a column contradict its type or the number of rows; the message says how."""


class ListValues(NamedTuple):
    """The values of a list column, none of them null."""

    values: np.ndarray  # [V]
    offsets: np.ndarray  # int32 [R + 1]: row r has the values [offsets[r], offsets[r + 1])


class NullableValues(NamedTuple):
    """The numbers of a column, with a given number in place of nulls."""

    values: np.ndarray  # [V]; [R] of a column without lists
    is_missing: np.ndarray | None  # bool, as `values`: True where null; None where none is
    offsets: np.ndarray | None  # int32 [R + 1] of a list column


class ColumnReader(Protocol):
    """Decodes one column of one row group of `num_rows` rows. Raises DamagedColumn."""

    def most_values(self) -> int:
        """Return a bound on the values of a list column, without decoding it."""

    def texts(self, num_rows: int) -> list[str]:
        """Return the string of each row, none of them null."""

    def lists(self, num_rows: int) -> ListValues:
        """Return the values of all rows; a null among them, or in place of a list, is an error."""

    def numbers(self, num_rows: int, missing: float) -> NullableValues:
        """Return the numbers of a column, or of its lists; a null in place of a list is an error."""


@dataclass(frozen=True)
class StoredRowGroup:
    """One row group as it was read, its columns not decoded yet."""

    num_rows: int
    columns: Mapping[str, ColumnReader]


@dataclass(frozen=True)
class PyarrowColumn:
    """A column that pyarrow's reader has decoded."""

    chunks: pa.ChunkedArray

    def most_values(self) -> int:
        return sum(len(part.values) for part in self.chunks.chunks)

    def texts(self, num_rows: int) -> list[str]:
        try:
            found: list[str] = _without_nulls(self._array(num_rows)).to_pylist()
        except UnicodeDecodeError as error:  # Parquet does not check what it calls a string
            raise DamagedColumn(f"a string that is no UTF-8 ({error})") from error
        return found

    def lists(self, num_rows: int) -> ListValues:
        values, offsets = _split(_without_nulls(self._array(num_rows)))
        return ListValues(_without_nulls(values).to_numpy(zero_copy_only=len(values) > 0), offsets)

    def numbers(self, num_rows: int, missing: float) -> NullableValues:
        array, offsets = self._array(num_rows), None
        if pa.types.is_list(array.type):
            array, offsets = _split(_without_nulls(array))
        is_missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
        return NullableValues(array.fill_null(missing).to_numpy(), is_missing, offsets)

    def _array(self, num_rows: int) -> pa.Array:
        if len(self.chunks) != num_rows:
            raise DamagedColumn(f"{len(self.chunks)} rows where the row group has {num_rows}")
        return self.chunks.chunk(0) if self.chunks.num_chunks == 1 else self.chunks.combine_chunks()


def _without_nulls(array: pa.Array) -> pa.Array:
    if array.null_count:
        raise DamagedColumn(f"{array.null_count} nulls")
    return array


def _split(array: pa.ListArray) -> tuple[pa.Array, np.ndarray]:
    """Return the values of all lists, nulls among them, and int32 [R + 1] offsets into them."""
    offsets = array.offsets.to_numpy()
    if not len(offsets):
        return array.values, np.zeros(1, np.int32)
    values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return values, offsets - offsets[0] if offsets[0] else offsets
