"""The bytes of Parquet's data pages (version 2, plain values): headers, levels, and where each row's values begin.

The bytes may be damaged: every position is compared with the end before it is read.
"""

# Here alone, L is the levels of a column: one for each value, and for each row without one.

import numpy as np

from pipeline.kernels.jit import nb

# Numbers of Thrift fields in PageHeader, and 8 + those in its field 8, DataPageHeaderV2.
_PAGE_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3
_V2 = 8
_NUM_LEVELS, _NUM_NULLS, _NUM_ROWS, _ENCODING = _V2 + 1, _V2 + 2, _V2 + 3, _V2 + 4
_DEFINITION_BYTES, _REPETITION_BYTES, _IS_COMPRESSED = _V2 + 5, _V2 + 6, _V2 + 7
_DATA_PAGE_V2, _PLAIN = 3, 0
_MAX_DEPTH = 4  # of structs in a header; the specification has two
_MAX_VARINT_BITS = 35
_MAX_INT32 = 2**31 - 1  # values of a column, and bytes of a page
LENGTH_BYTES = 4  # before a string
_BROKEN = -1


@nb.njit(nogil=True, cache=True)
def walk(
    chunk: np.ndarray, is_list: bool, may_lack: bool, itemsize: int, offsets_R: np.ndarray, places: np.ndarray
) -> int:
    """Find where each row begins among the values of `chunk` (offsets_R), and where each page has its values (places).

    A row of `places` gives a page's first byte of values, their number of bytes, the number when uncompressed, and
    whether they are compressed. Returns the number of pages, or _BROKEN.

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
            or page == len(places)
            or header[_PAGE_TYPE] != _DATA_PAGE_V2
            or header[_ENCODING] != _PLAIN
            or min(repetition, definition, stored, unpacked, num_levels, num_lacking, num_starts) < 0
            or header[_COMPRESSED] > len(chunk) - at
            or num_starts > num_rows - row
            or num_lacking > (num_starts if may_lack else 0)
            or (num_levels != num_starts and not is_list)
            or (num_levels > 0 and num_starts == 0)
            or (itemsize > 0 and (num_levels - num_lacking) * itemsize != unpacked)
            or max(unpacked, num_levels, value + num_levels) > _MAX_INT32
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
        places[page, 0], places[page, 1] = after, stored
        places[page, 2], places[page, 3] = unpacked, header[_IS_COMPRESSED]
        at += header[_COMPRESSED]
        page += 1
        row += num_starts
        value += num_levels - num_lacking
    offsets_R[num_rows] = value
    return page if row == num_rows else _BROKEN


@nb.njit(nogil=True, cache=True)
def _zeros(chunk: np.ndarray, at: int, end: int, num_levels: int, zero_L: np.ndarray) -> int:
    """Write to `zero_L` which of the levels in the bytes [at, end) of `chunk` are 0, at most len(zero_L) - 8.

    Returns how many are, or _BROKEN.

    run      varint 2n     | a byte, 0 or 1: the level n times
    literal  varint 2n + 1 | n bytes: 8 levels each, the first the lowest bit; the last byte is filled up
    """
    found = level = 0
    most = len(zero_L) - 8  # so that 8 levels can be written without a comparison each
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


@nb.njit(nogil=True, cache=True)
def split_texts(content: np.ndarray, ends: np.ndarray) -> int:
    """Write to `ends` where each string ends. Returns the number of strings, or _BROKEN.

    content   length (4 bytes, the lowest first) | bytes | length | …
    """
    at = count = 0
    while at < len(content):
        if count == len(ends) or len(content) - at < LENGTH_BYTES:
            return _BROKEN
        length = 0
        for place in range(LENGTH_BYTES):
            length |= (content[at + place] & 255) << (8 * place)
        at += LENGTH_BYTES + length
        if at > len(content):
            return _BROKEN
        ends[count] = at
        count += 1
    return count


@nb.njit(nogil=True, cache=True)
def begins_page_v2(chunk: np.ndarray) -> bool:
    """Say whether the first page of `chunk` is a DataPageV2, the one kind that `walk` reads."""
    header = np.empty(2 * _V2, np.int64)
    return _read_header(chunk, 0, header) > 0 and header[_PAGE_TYPE] == _DATA_PAGE_V2


@nb.njit(nogil=True, cache=True)
def _read_header(chunk: np.ndarray, at: int, header: np.ndarray) -> int:
    """Parse the PageHeader (Thrift, compact protocol) at `at` into `header`. Returns where it ends, or _BROKEN.

    field   number minus the one before (4 bits), type (4 bits) | value …     a struct ends with a byte 0
    """
    header[:] = 0
    header[_IS_COMPRESSED] = 1  # unless said otherwise
    numbers = np.zeros(_MAX_DEPTH, np.int64)  # of the last field read, at each depth of structs
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
            numbers[depth] += byte >> 4
        else:
            coded, at = _varint(chunk, at, len(chunk))
            numbers[depth] = (coded >> 1) ^ -(coded & 1)
        kind = byte & 15
        value = np.int64(kind == 1)
        if kind == 12:  # struct
            depth += 1
            if depth == _MAX_DEPTH:
                return _BROKEN
            numbers[depth] = 0
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
        if 0 < numbers[depth] < _V2:
            if depth == 0:
                header[numbers[0]] = value
            elif depth == 1 and numbers[0] == _V2:
                header[_V2 + numbers[1]] = value
    return _BROKEN


@nb.njit(nogil=True, cache=True)
def _varint(chunk: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """Parse the number at `at`: 7 bits a byte, the lowest first. Returns it and where it ends, or _BROKEN for the end."""
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
