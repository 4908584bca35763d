"""Find the rows and fields of CSV in one pass over its bytes.

    row     field delimiter field … line end         \\n, \\r\\n or \\r
    field   bytes without delimiter and line end     a quote has a meaning only at the start of a field
            quote bytes quote                        line breaks and delimiters are content; escape quote is a quote

A quote that is never closed would swallow the rest of the file. So a row of several lines counts only if it has the
right number of fields. Otherwise its first line alone is a bad row, and the next row begins behind it.
tests/support/references/csv_rows.py is the slow twin.
"""

# Shapes: R rows, W wanted columns, F columns of the file.

import numpy as np

from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import byte_at

GOOD_ROW, BAD_COUNT, BAD_QUOTE = 0, 1, 2  # the reason of a row
UNQUOTED, QUOTED, WITH_ESCAPES = 0, 1, 2  # how a field is written
ROW_START, ROW_END, ROW_REASON = 0, 1, 2  # columns of the table of rows
_NEWLINE, _CARRIAGE_RETURN, _SPACE = 10, 13, 32


@nb.njit(cache=True)
def find_rows(text, num_bytes, is_last, is_full, delimiter, quote, escape, slot_F, row_R, span_RW, form_RW):  # type: ignore[no-untyped-def]
    """Fill the tables of rows and fields; return (number of rows, where the first incomplete row begins).

    `text` is an address. `is_last`: the file ends with `text`. `is_full`: no more is read for a row, so an open quote is a bad one.
    `slot_F` has the wanted column of each column of the file, or -1. `quote` is -1 where there is none.
    """
    num_rows = position = 0
    while position < num_bytes:
        stop, behind, num_fields, reason, first_break = _find_row(
            text, position, num_bytes, is_last, delimiter, quote, escape, slot_F, num_rows, span_RW, form_RW
        )
        if stop < 0:
            if not is_full or first_break < 0:
                break
            reason = BAD_QUOTE
        elif reason == GOOD_ROW and num_fields != len(slot_F):
            reason = BAD_COUNT
        if reason != GOOD_ROW and first_break >= 0:
            stop = first_break
            behind = stop + 1
            if byte_at(text, stop) == _CARRIAGE_RETURN and behind < num_bytes and byte_at(text, behind) == _NEWLINE:
                behind += 1
        if num_fields > 1 or not _is_blank(text, position, stop):
            row_R[num_rows, ROW_START], row_R[num_rows, ROW_END], row_R[num_rows, ROW_REASON] = position, stop, reason
            num_rows += 1
        position = behind
    return num_rows, position


@nb.njit(cache=True)
def _is_blank(text, position, stop):  # type: ignore[no-untyped-def]
    while position < stop and byte_at(text, position) <= _SPACE:
        position += 1
    return position == stop


@nb.njit(cache=True)
def _begins_with(text, position, num_bytes, delimiter):  # type: ignore[no-untyped-def]
    """Say whether the delimiter stands at `position`, whose first byte is known to be its first."""
    if position + len(delimiter) > num_bytes:
        return False
    place = 1
    while place < len(delimiter) and byte_at(text, position + place) == delimiter[place]:
        place += 1
    return place == len(delimiter)


@nb.njit(cache=True)
def _find_row(text, position, num_bytes, is_last, delimiter, quote, escape, slot_F, row, span_RW, form_RW):  # type: ignore[no-untyped-def]
    """Find the fields of one row; return (its end or -1, where the next begins, fields, reason, its first line break).

    The end is -1 where the bytes end before the row does. Then the first line break within quotes still counts.
    """
    num_fields, reason, first_break = 0, GOOD_ROW, -1
    place, first = position, np.int64(delimiter[0])
    while True:
        if quote >= 0 and place < num_bytes and byte_at(text, place) == quote:
            begin, form, closed = place + 1, QUOTED, False
            place += 1
            while place < num_bytes:
                byte = byte_at(text, place)
                if byte == escape and (
                    escape != quote or (place + 1 < num_bytes and byte_at(text, place + 1) == quote)
                ):
                    form = WITH_ESCAPES
                    place += 2
                    continue
                if byte == quote:
                    closed = True
                    break
                if byte in (_NEWLINE, _CARRIAGE_RETURN) and first_break < 0:
                    first_break = place
                place += 1
            end = min(place, num_bytes)
            if not closed:
                if not is_last:
                    return -1, -1, num_fields, reason, first_break
                reason = BAD_QUOTE
            place = end + closed
            # Behind the closing quote the field has to end.
            behind = _field_end(text, place, num_bytes, delimiter, first)
            reason = BAD_QUOTE if behind > place else reason
            place = behind
        else:
            begin, form = place, UNQUOTED
            place = end = _field_end(text, place, num_bytes, delimiter, first)
        if place >= num_bytes and not is_last:
            return -1, -1, num_fields, reason, first_break
        if num_fields < len(slot_F) and slot_F[num_fields] >= 0:
            slot = slot_F[num_fields]
            span_RW[row, slot, 0], span_RW[row, slot, 1], form_RW[row, slot] = begin, end, form
        num_fields += 1
        if place >= num_bytes:
            return num_bytes, num_bytes, num_fields, reason, first_break
        if byte_at(text, place) == first:  # a field ends at a line end or a whole delimiter
            place += len(delimiter)
            continue
        behind = place + 1
        if byte_at(text, place) == _CARRIAGE_RETURN:
            if behind >= num_bytes and not is_last:
                return -1, -1, num_fields, reason, first_break  # a line feed may follow
            behind += behind < num_bytes and byte_at(text, behind) == _NEWLINE
        return place, behind, num_fields, reason, first_break


@nb.njit(cache=True)
def _field_end(text, place, num_bytes, delimiter, first):  # type: ignore[no-untyped-def]
    """Find the next line end or delimiter from `place` on; num_bytes if there is none."""
    while place < num_bytes:
        byte = byte_at(text, place)
        if byte in (_NEWLINE, _CARRIAGE_RETURN) or (byte == first and _begins_with(text, place, num_bytes, delimiter)):
            return place
        place += 1
    return num_bytes


@nb.njit(cache=True)
def copy_fields(text, slot, row_R, span_RW, form_RW, escape, out, offset_R, is_valid_R):  # type: ignore[no-untyped-def]
    """Copy the values of one wanted column into `out`, one behind the other, without their escapes; return the bytes.

    Fields of bad rows and empty ones without quotes are null.
    """
    length = 0
    for row in range(len(row_R)):
        offset_R[row] = length
        begin, end, form = span_RW[row, slot, 0], span_RW[row, slot, 1], form_RW[row, slot]
        is_valid_R[row] = row_R[row, ROW_REASON] == GOOD_ROW and (form != UNQUOTED or begin < end)
        if not is_valid_R[row]:
            continue
        place = begin
        while place < end:
            if form == WITH_ESCAPES and byte_at(text, place) == escape and place + 1 < end:
                place += 1
            out[length] = byte_at(text, place)
            length += 1
            place += 1
    offset_R[len(row_R)] = length
    return length


def empty_tables(num_rows: int, num_wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make the tables that `find_rows` fills: rows, spans of fields, forms of fields."""
    return (
        np.empty((num_rows, 3), np.int64),
        np.empty((num_rows, num_wanted, 2), np.int64),
        np.empty((num_rows, num_wanted), np.uint8),
    )
