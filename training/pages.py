"""Plain columns of Parquet, decoded from their pages: nearly all that jobs.preprocess writes.

A list column stores two levels with every value, and pyarrow expands them and walks them value by value, which takes
longer than decompressing (docs/benchmarks.md, Feed). Where no item of a list is null a level is one bit, and the runs in
which the bits are stored say where each list begins. All other columns are left to pyarrow.
"""

# Shapes: R rows, P pages, V values, L levels.

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pipeline.numba_cache  # noqa: F401  (before numba)

# isort: split
from numba import njit

#: Definition and repetition levels of a number or string, of a number that may be null, of a list of numbers.
_LEVELS = ((0, 0), (1, 0), (1, 1))
_CODEC = pa.Codec("zstd")
_TEXT = np.dtype(np.uint8)
_TYPES: dict[str, np.dtype] = {
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FLOAT": np.dtype(np.float32),
    "BYTE_ARRAY": _TEXT,
}
# Numbers of Thrift fields in PageHeader, and 8 + those in its field 8, DataPageHeaderV2.
_PAGE_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3
_V2 = 8
_NUM_LEVELS, _NUM_NULLS, _NUM_ROWS, _ENCODING = _V2 + 1, _V2 + 2, _V2 + 3, _V2 + 4
_DEFINITION_BYTES, _REPETITION_BYTES, _IS_COMPRESSED = _V2 + 5, _V2 + 6, _V2 + 7
_DATA_PAGE_V2, _PLAIN = 3, 0
_MAX_DEPTH = 4  # of structs in a header; the specification has two
_MAX_VARINT_BITS = 35
_MOST = 2**31 - 1  # values of a column, and bytes of a page
_LENGTH_BYTES = 4  # before a string
_BROKEN = -1


@dataclass(frozen=True)
class Form:
    """How the values of a column are stored."""

    dtype: np.dtype
    is_list: bool  # there is a repetition level
    may_lack: bool  # there is a definition level: a list may be empty, or a number null


@dataclass(frozen=True)
class PlainColumn:
    """Where a file has the pages of one column that Chunk can decode."""

    form: Form
    bytes_G: list[tuple[int, int]]  # of each row group: the first byte, and the one after the last
    levels_G: list[int]  # of each row group: values, and rows without one


@dataclass(frozen=True)
class Chunk:
    """The pages of one column of one row group, as they lie in the file."""

    pages: pa.Buffer
    form: Form
    num_levels: int  # values, and rows without one, as the footer has it

    def decoded(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The values of all rows, and int32 [R + 1] offsets into them; a row that is null has no value.

        Raises OSError for what does not hold together.
        """
        assert self.form.dtype is not _TEXT
        parts, offsets_R = self._pages(num_rows, self.form.dtype.itemsize)
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.form.dtype), *parts]), offsets_R

    def texts(self, num_rows: int) -> list[str]:
        """The strings of all rows. Raises OSError as `decoded` does, and UnicodeDecodeError."""
        assert self.form == Form(_TEXT, is_list=False, may_lack=False), self.form
        found: list[str] = []
        for part in self._pages(num_rows, 0)[0]:
            end_T = np.empty(num_rows - len(found), np.int64)
            num_texts = _split_texts(part, end_T)
            if num_texts < 0:
                raise OSError("a string that does not end where its page does")
            content, ends = part.tobytes(), end_T[:num_texts].tolist()
            found += [
                content[start + _LENGTH_BYTES : end].decode() for start, end in zip([0, *ends], ends, strict=False)
            ]
        if len(found) != num_rows:
            raise OSError(f"{len(found)} strings where the row group has {num_rows} rows")
        return found

    def is_page_v2(self) -> bool:
        """Whether the first page is a DataPageV2, the one kind that is decoded here."""
        header = np.zeros(2 * _V2, np.int64)
        return _read_header(np.frombuffer(self.pages, np.uint8), 0, header) > 0 and header[_PAGE_TYPE] == _DATA_PAGE_V2

    def _pages(self, num_rows: int, itemsize: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The values of each page, and int32 [R + 1] offsets into all of them."""
        offsets_R, page_P4 = np.empty(num_rows + 1, np.int32), np.empty((num_rows + 1, 4), np.int64)
        content = np.frombuffer(self.pages, np.uint8)
        num_pages = _walk(content, self.form.is_list, self.form.may_lack, itemsize, offsets_R, page_P4)
        if num_pages < 0 or offsets_R[-1] > self.num_levels:
            raise OSError("a page that does not hold together")
        return [self._values(*page) for page in page_P4[:num_pages].tolist()], offsets_R

    def _values(self, start: int, num_bytes: int, uncompressed: int, is_compressed: int) -> np.ndarray:
        stored = self.pages.slice(start, num_bytes)
        if is_compressed and uncompressed:
            stored = _CODEC.decompress(stored, uncompressed)
        return np.frombuffer(stored, self.form.dtype)


@dataclass(frozen=True)
class StoredRowGroup:
    """One row group as it was read: plain columns not decoded yet, the others as pyarrow's reader gives them."""

    num_rows: int
    chunks: Mapping[str, Chunk]
    table: pa.Table

    def most_values(self, column: str) -> int:
        """A bound on the values of a list column."""
        if chunk := self.chunks.get(column):
            return chunk.num_levels
        return sum(len(part.values) for part in self.table.column(column).chunks)


def plain_columns(stream: pa.NativeFile, metadata: pq.FileMetaData) -> dict[str, PlainColumn]:
    """The columns of a file that Chunk can decode, by the name of the column of the table."""
    found = {}
    for place in range(metadata.num_columns):
        column = metadata.schema.column(place)
        chunks = [metadata.row_group(number).column(place) for number in range(metadata.num_row_groups)]
        levels = column.max_definition_level, column.max_repetition_level
        dtype = _TYPES.get(column.physical_type)
        if dtype is None or levels not in _LEVELS[: 1 if dtype is _TEXT else None] or not all(map(_is_plain, chunks)):
            continue
        bytes_G = [(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size) for chunk in chunks]
        form = Form(dtype, is_list=levels[1] == 1, may_lack=levels[0] == 1)
        found[column.path.split(".")[0]] = PlainColumn(form, bytes_G, [chunk.num_values for chunk in chunks])
    if not found or not metadata.num_row_groups:
        return {}
    first = chunks_of(stream, 0, found)
    return {name: column for name, column in found.items() if first[name].is_page_v2()}  # a writer has one kind of page


def chunks_of(stream: pa.NativeFile, row_group: int, plain: Mapping[str, PlainColumn]) -> dict[str, Chunk]:
    """The pages of the columns `plain` of a row group, in one reading from the first to the last."""
    if not plain:
        return {}
    bytes_of = {name: column.bytes_G[row_group] for name, column in plain.items()}
    start, stop = min(first for first, _ in bytes_of.values()), max(last for _, last in bytes_of.values())
    stream.seek(start)
    read = stream.read_buffer(stop - start)
    if len(read) < stop - start:
        raise OSError(f"it ends at byte {start + len(read)}")
    return {
        name: Chunk(read.slice(first - start, last - first), plain[name].form, plain[name].levels_G[row_group])
        for name, (first, last) in bytes_of.items()
    }


def _is_plain(chunk: pq.ColumnChunkMetaData) -> bool:
    return chunk.compression == "ZSTD" and set(chunk.encodings) <= {"PLAIN", "RLE"} and not chunk.has_dictionary_page


# The kernels take bytes that anything may have happened to: every position is compared with the end before it is read.


@njit(nogil=True, cache=True)
def _walk(
    chunk: np.ndarray, is_list: bool, may_lack: bool, itemsize: int, offsets_R: np.ndarray, page_P4: np.ndarray
) -> int:
    """The pages of `chunk`: where each row begins among the values, and of each page start, bytes, uncompressed bytes
    and whether it is compressed, of the values alone. Returns the number of pages, or _BROKEN.

    chunk      header | repetition | definition | values | header | …
                        0 1 1 0 0    1 1 1 0 1            rows begin at levels 0, 3, 4; the second has no value:
    offsets_R  0 3 3 4
    """
    header = np.empty(2 * _V2, np.int64)
    num_rows = len(offsets_R) - 1
    start_L = np.empty(num_rows + 8, np.int32)  # the levels at which rows begin
    lacking_L = np.empty(num_rows + 8, np.int32)  # the levels of rows without a value
    at = page = row = value = 0
    while at < len(chunk):
        at = _read_header(chunk, at, header)
        repetition, definition = header[_REPETITION_BYTES], header[_DEFINITION_BYTES]
        stored = header[_COMPRESSED] - repetition - definition
        unpacked = header[_UNCOMPRESSED] - repetition - definition
        num_levels, num_lacking, num_starts = header[_NUM_LEVELS], header[_NUM_NULLS], header[_NUM_ROWS]
        if (
            at < 0
            or page == len(page_P4)
            or header[_PAGE_TYPE] != _DATA_PAGE_V2
            or header[_ENCODING] != _PLAIN
            or min(repetition, definition, stored, unpacked, num_levels, num_lacking, num_starts) < 0
            or header[_COMPRESSED] > len(chunk) - at
            or num_starts > num_rows - row
            or num_lacking > (num_starts if may_lack else 0)
            or (num_levels != num_starts and not is_list)
            or (num_levels > 0 and num_starts == 0)
            or (itemsize > 0 and (num_levels - num_lacking) * itemsize != unpacked)
            or max(unpacked, num_levels, value + num_levels) > _MOST
            or (header[_IS_COMPRESSED] == 0 and stored != unpacked)
        ):
            return _BROKEN
        middle = at + repetition
        if is_list and _zeros(chunk, at, middle, num_levels, start_L[: num_starts + 8]) != num_starts:
            return _BROKEN
        if is_list and num_starts and start_L[0] != 0:
            return _BROKEN
        after = middle + definition
        if num_lacking and _zeros(chunk, middle, after, num_levels, lacking_L[: num_lacking + 8]) != num_lacking:
            return _BROKEN
        lacking = 0  # so far
        for place in range(num_starts):
            start = start_L[place] if is_list else place
            while lacking < num_lacking and lacking_L[lacking] < start:
                lacking += 1
            offsets_R[row + place] = value + start - lacking
        page_P4[page, 0], page_P4[page, 1] = after, stored
        page_P4[page, 2], page_P4[page, 3] = unpacked, header[_IS_COMPRESSED]
        at += header[_COMPRESSED]
        page += 1
        row += num_starts
        value += num_levels - num_lacking
    offsets_R[num_rows] = value
    return page if row == num_rows else _BROKEN


@njit(nogil=True, cache=True)
def _zeros(chunk: np.ndarray, at: int, end: int, num_levels: int, zero_L: np.ndarray) -> int:
    """zero_L: which of the levels in the bytes [at, end) of `chunk` are 0, if at most len(zero_L) - 8. Returns how many,
    or _BROKEN.

    run      varint 2n     | a byte, 0 or 1: the level n times
    literal  varint 2n + 1 | n bytes: 8 levels each, the first the lowest bit; the last byte is filled up
    """
    found = level = 0
    most = len(zero_L) - 8  # so that 8 levels can be written without looking
    while level < num_levels:
        head, at = _varint(chunk, at, end)
        count = head >> 1
        if at < 0 or at >= end or count == 0:
            return _BROKEN
        if head & 1:
            if count > end - at:
                return _BROKEN
            for byte in chunk[at : at + count]:
                if byte != 255:
                    for bit in range(min(8, num_levels - level)):
                        zero_L[found] = level + bit
                        found += 1 - ((byte >> bit) & 1)
                    if found > most:
                        return _BROKEN
                level += 8
            at += count
        else:
            count = min(count, num_levels - level)
            if chunk[at] == 0:
                if count > most - found:
                    return _BROKEN
                for place in range(count):
                    zero_L[found + place] = level + place
                found += count
            level += count
            at += 1
    return found


@njit(nogil=True, cache=True)
def _split_texts(content: np.ndarray, end_T: np.ndarray) -> int:
    """end_T: where each string ends. Returns how many there are, or _BROKEN.

    content   length (4 bytes, the lowest first) | bytes | length | …
    """
    at = count = 0
    while at < len(content):
        if count == len(end_T) or len(content) - at < _LENGTH_BYTES:
            return _BROKEN
        length = 0
        for place in range(_LENGTH_BYTES):
            length |= (content[at + place] & 255) << (8 * place)
        at += _LENGTH_BYTES + length
        if at > len(content):
            return _BROKEN
        end_T[count] = at
        count += 1
    return count


@njit(nogil=True, cache=True)
def _read_header(chunk: np.ndarray, at: int, header: np.ndarray) -> int:
    """header: the numbers of a PageHeader (Thrift, compact protocol) at `at`. Returns where it ends, or _BROKEN.

    field   number minus the one before (4 bits), type (4 bits) | value …     a struct ends with a byte 0
    """
    header[:] = 0
    header[_IS_COMPRESSED] = 1  # unless said otherwise
    number_D = np.zeros(_MAX_DEPTH, np.int64)  # of the last field read, at each depth of structs
    depth = 0
    while 0 <= at < len(chunk):
        byte = np.int64(chunk[at])
        at += 1
        if byte == 0:
            depth -= 1
            if depth < 0:
                return at
            continue
        if byte >> 4:
            number_D[depth] += byte >> 4
        else:
            coded, at = _varint(chunk, at, len(chunk))
            number_D[depth] = (coded >> 1) ^ -(coded & 1)
        kind = byte & 15
        value = np.int64(kind == 1)
        if kind == 12:  # struct
            depth += 1
            if depth == _MAX_DEPTH:
                return _BROKEN
            number_D[depth] = 0
            continue
        if kind == 8:  # binary
            length, at = _varint(chunk, at, len(chunk))
            if at >= 0:
                at += length
        elif kind in (4, 5, 6):  # int16, int32, int64
            coded, at = _varint(chunk, at, len(chunk))
            value = (coded >> 1) ^ -(coded & 1)
        elif kind not in (1, 2):  # true, false
            return _BROKEN
        if 0 < number_D[depth] < _V2:
            if depth == 0:
                header[number_D[0]] = value
            elif depth == 1 and number_D[0] == _V2:
                header[_V2 + number_D[1]] = value
    return _BROKEN


@njit(nogil=True, cache=True)
def _varint(chunk: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, 7 bits a byte, the lowest first, and where it ends; _BROKEN for that if it does not."""
    value = 0
    for shift in range(0, _MAX_VARINT_BITS, 7):
        if at < 0 or at >= end:
            return 0, _BROKEN
        byte = chunk[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    return 0, _BROKEN
