"""Plain columns of Parquet, decoded from their pages: nearly all that jobs.preprocess writes.

A list column stores two levels with every value, and pyarrow expands them and walks them value by value, which takes
longer than decompressing (docs/benchmarks-diary.md). Where no item of a list is null a level is one bit, and the runs
in which the bits are stored say where each list begins. All other columns are left to pyarrow.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.feed.column_reader import DamagedColumn, ListValues, NullableValues
from training.feed.parquet_page_kernels import LENGTH_BYTES, begins_page_v2, split_texts, walk

#: Definition and repetition levels of a number or string, of a number that may be null, of a list of numbers.
_LEVELS = ((0, 0), (1, 0), (1, 1))
#: The exceptions of decoding damaged bytes.
_UNDECODABLE = (OSError, pa.ArrowException, UnicodeDecodeError)
_CODEC = pa.Codec("zstd")
_TEXT = np.dtype(np.uint8)
_DTYPE_OF_PHYSICAL: dict[str, np.dtype] = {
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FLOAT": np.dtype(np.float32),
    "BYTE_ARRAY": _TEXT,
}


@dataclass(frozen=True)
class PageForm:
    """How the values of a column are stored."""

    dtype: np.dtype
    is_list: bool  # there is a repetition level
    may_lack: bool  # there is a definition level: a list may be empty, or a number null


@dataclass(frozen=True)
class PlainColumn:
    """The place in a file of the pages of one column that ColumnPages can decode."""

    form: PageForm
    byte_ranges: list[tuple[int, int]]  # of each row group: the first byte, and the one after the last
    level_counts: list[int]  # of each row group: values, and rows without one


@dataclass(frozen=True)
class ColumnPages:
    """The pages of one column of one row group, as they lie in the file: a ColumnReader."""

    pages: pa.Buffer
    form: PageForm
    num_levels: int  # values, and rows without one, as the footer has it

    def most_values(self) -> int:
        return self.num_levels

    def lists(self, num_rows: int) -> ListValues:
        return self._decoded(num_rows)

    def numbers(self, num_rows: int, missing: float) -> NullableValues:
        values, offsets = self._decoded(num_rows)
        if self.form.is_list:
            return NullableValues(values, None, offsets)
        if len(values) == num_rows:
            return NullableValues(values, None, None)
        is_missing = np.diff(offsets) == 0
        whole = np.full(num_rows, missing, values.dtype)
        whole[~is_missing] = values
        return NullableValues(whole, is_missing, None)

    def texts(self, num_rows: int) -> list[str]:
        try:
            return self._texts(num_rows)
        except _UNDECODABLE as error:
            raise _damaged_column(error) from error

    def _decoded(self, num_rows: int) -> ListValues:
        """Decode the values of all rows; a row that is null has no value."""
        assert self.form.dtype is not _TEXT
        try:
            parts, offsets_R = self._pages(num_rows, self.form.dtype.itemsize)
        except _UNDECODABLE as error:
            raise _damaged_column(error) from error
        values = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.form.dtype), *parts])
        return ListValues(values, offsets_R)

    def _texts(self, num_rows: int) -> list[str]:
        assert self.form == PageForm(_TEXT, is_list=False, may_lack=False), self.form
        found: list[str] = []
        for part in self._pages(num_rows, 0)[0]:
            ends = np.empty(num_rows - len(found), np.int64)
            num_texts = split_texts(part, ends)
            if num_texts < 0:
                raise OSError("a string that does not end where its page does")
            content, stops = part.tobytes(), ends[:num_texts].tolist()
            found += [
                content[start + LENGTH_BYTES : end].decode() for start, end in zip([0, *stops], stops, strict=False)
            ]
        if len(found) != num_rows:
            raise OSError(f"{len(found)} strings where the row group has {num_rows} rows")
        return found

    def is_page_v2(self) -> bool:
        """Say whether the first page is a DataPageV2, the one kind that is decoded here."""
        return bool(begins_page_v2(np.frombuffer(self.pages, np.uint8)))

    def _pages(self, num_rows: int, itemsize: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the values of each page, and int32 [R + 1] offsets into all of them."""
        offsets_R, places = np.empty(num_rows + 1, np.int32), np.empty((num_rows + 1, 4), np.int64)
        content = np.frombuffer(self.pages, np.uint8)
        num_pages = walk(content, self.form.is_list, self.form.may_lack, itemsize, offsets_R, places)
        if num_pages < 0 or offsets_R[-1] > self.num_levels:
            raise OSError("a page that does not hold together")
        return [self._values(*page) for page in places[:num_pages].tolist()], offsets_R

    def _values(self, start: int, num_bytes: int, uncompressed: int, is_compressed: int) -> np.ndarray:
        stored = self.pages.slice(start, num_bytes)
        if is_compressed and uncompressed:
            stored = _CODEC.decompress(stored, uncompressed)
        return np.frombuffer(stored, self.form.dtype)


def plain_columns(stream: pa.NativeFile, metadata: pq.FileMetaData) -> dict[str, PlainColumn]:
    """Find the columns of a file that ColumnPages can decode, by the name of the column of the table."""
    found = {}
    for place in range(metadata.num_columns):
        column = metadata.schema.column(place)
        chunks = [metadata.row_group(number).column(place) for number in range(metadata.num_row_groups)]
        levels = column.max_definition_level, column.max_repetition_level
        dtype = _DTYPE_OF_PHYSICAL.get(column.physical_type)
        if dtype is None or levels not in _LEVELS[: 1 if dtype is _TEXT else None] or not all(map(_is_plain, chunks)):
            continue
        byte_ranges = [
            (chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size) for chunk in chunks
        ]
        form = PageForm(dtype, is_list=levels[1] == 1, may_lack=levels[0] == 1)
        found[column.path.split(".")[0]] = PlainColumn(form, byte_ranges, [chunk.num_values for chunk in chunks])
    if not found or not metadata.num_row_groups:
        return {}
    first = pages_of(stream, 0, found)
    return {name: column for name, column in found.items() if first[name].is_page_v2()}  # a writer has one kind of page


def pages_of(stream: pa.NativeFile, row_group: int, plain: Mapping[str, PlainColumn]) -> dict[str, ColumnPages]:
    """Read the pages of the columns `plain` of a row group, in one reading from the first to the last."""
    if not plain:
        return {}
    bytes_of = {name: column.byte_ranges[row_group] for name, column in plain.items()}
    start, stop = min(first for first, _ in bytes_of.values()), max(last for _, last in bytes_of.values())
    stream.seek(start)
    read = stream.read_buffer(stop - start)
    if len(read) < stop - start:
        raise OSError(f"it ends at byte {start + len(read)}")
    return {
        name: ColumnPages(
            read.slice(first - start, last - first), plain[name].form, plain[name].level_counts[row_group]
        )
        for name, (first, last) in bytes_of.items()
    }


def _damaged_column(error: Exception) -> DamagedColumn:
    return DamagedColumn(f"pages that cannot be decoded ({str(error).splitlines()[0]})")


def _is_plain(chunk: pq.ColumnChunkMetaData) -> bool:
    return chunk.compression == "ZSTD" and set(chunk.encodings) <= {"PLAIN", "RLE"} and not chunk.has_dictionary_page
