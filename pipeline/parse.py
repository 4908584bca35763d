"""The byte kernel: one pass over a chunk of whole lines gives every (field, id, weight) and the reason of a bad line.

    skeleton line   sample_id,click,buy,common_feature_index,num_features,feature \\x01 feature …
    context line    common_feature_index,num_features,feature \\x01 feature …
    feature         name \\x02 id \\x03 weight

A line ends in \\n or \\r\\n. The hot path walks a good line once; whatever it cannot read goes to `_reason`, which reads
that line again by the book. Where several rules are broken, the first in the order of REASONS is the reason.
tests/aliccp_reference.py is the slow twin.
"""

# Shapes: L lines, C columns of LINE_*, V values, F fields of a scope, N bytes of the longest name, S slots.

import pipeline.numba_cache  # noqa: F401  (before numba: it chooses where kernels are kept)

# isort: split

from collections.abc import Sequence
from dataclasses import dataclass

import numba as nb
import numpy as np

from pipeline.fields import Catalogue

#: Why a line is set aside, in order of precedence; a line's reason is a position here, 0 for none.
REASONS = (
    "",
    "malformed_line",
    "bad_label",
    "bad_context_key",
    "bad_feature",
    "feature_count_mismatch",
    "conversion_without_click",
    "missing_context",
    "duplicate_impression",
    "duplicate_context",
)
GOOD, MALFORMED_LINE, BAD_LABEL, BAD_CONTEXT_KEY, BAD_FEATURE, COUNT_MISMATCH, WITHOUT_CLICK = range(7)
MISSING_CONTEXT, DUPLICATE_IMPRESSION, DUPLICATE_CONTEXT = range(7, 10)

#: What is known of a line: the columns of `Parsed.line_LC`. END excludes the line feed.
START, END, REASON, KEY, HAS_KEY, SAMPLE_ID, LABELS, MISMATCH, VALUES_END, UNKNOWN, REPEATED = range(11)
LINE_COLUMNS = 11
CLICK_BIT, BUY_BIT, DACTION_BIT = 1, 2, 4  # the last in event logs only: Ali-CCP's dactions lie in a file of their own

_LF, _CR, _COMMA, _MINUS, _PLUS, _DOT, _ZERO = 10, 13, 44, 45, 43, 46, 48
_JOIN, _ID, _VALUE = 1, 2, 3  # \x01 between features, \x02 before the id, \x03 before the weight
_MAX_INT64 = np.iinfo(np.int64).max
_MAX_FLOAT32 = float(np.finfo(np.float32).max) + 2.0**103  # rounds to infinity from here on (half a step above)
_MAX_SHORT = 2**53 // 10 - 1  # one more digit stays below 2^53
_SMALLEST_FEATURE = len(b"1\x022\x033\x01")

_POWERS = 10.0 ** np.arange(23)  # exact in a double up to 10^22
# libc's correctly rounded parser, for the few weights that the exact short path below cannot do.
_strtod = nb.types.ExternalFunction("strtod", nb.types.float64(nb.types.intp, nb.types.intp))

_IS_BREAK = np.zeros(256, np.bool_)
_IS_BREAK[[_JOIN, _ID, _VALUE, _LF, _COMMA]] = True


@dataclass(frozen=True)
class Names:
    """The raw names of one scope's fields as bytes, in a table that the kernel probes by hash."""

    slot_S: np.ndarray  # int64, position in the scope, -1 empty
    bytes_FN: np.ndarray  # uint8
    length_F: np.ndarray  # int64
    number_F: np.ndarray  # int64, position in the catalogue
    is_one_F: np.ndarray  # bool: arity one


@dataclass(frozen=True)
class Parsed:
    """One chunk: `line_LC` (see START …), and the values of line l at [VALUES_END of l-1, VALUES_END of l).

    Only good lines have values; `field_V` is the position in the catalogue.
    """

    line_LC: np.ndarray  # int64
    field_V: np.ndarray  # int16
    id_V: np.ndarray  # int64
    weight_V: np.ndarray  # float32

    @property
    def num_values_L(self) -> np.ndarray:
        """How many values each line has."""
        return np.diff(self.line_LC[:, VALUES_END], prepend=0)


def names_of(catalogue: Catalogue, scope: str) -> Names:
    """The probe table of one scope."""
    entries = catalogue.read_fields(scope)
    raw = [entry.raw_id.encode() for entry in entries]
    width = max([len(name) for name in raw] + [1])
    bytes_FN = np.zeros((len(raw), width), np.uint8)
    slot_S = np.full(1 << max(6, (4 * len(raw)).bit_length()), -1, np.int64)
    for i, name in enumerate(raw):
        bytes_FN[i, : len(name)] = np.frombuffer(name, np.uint8)
        slot = _name_hash(name) & (len(slot_S) - 1)
        while slot_S[slot] >= 0:
            slot = (slot + 1) & (len(slot_S) - 1)
        slot_S[slot] = i
    number_F = np.array([catalogue.fields.index(entry) for entry in entries], np.int64)
    is_one_F = np.array([entry.arity == "one" for entry in entries], np.bool_)
    return Names(slot_S, bytes_FN, np.array([len(name) for name in raw], np.int64), number_F, is_one_F)


def parse(chunk: bytes, is_skeleton: bool, names: Names) -> Parsed:
    """Read `chunk`, whole lines of which the last ends in a line feed too."""
    assert chunk.endswith(b"\n")
    buffer = np.frombuffer(chunk, np.uint8)
    line_LC = np.empty((chunk.count(b"\n"), LINE_COLUMNS), np.int64)
    most = len(chunk) // _SMALLEST_FEATURE + 1
    field_V, id_V, weight_V = np.empty(most, np.int16), np.empty(most, np.int64), np.empty(most, np.float32)
    num_values = _parse_lines(
        buffer, is_skeleton, names.slot_S, names.bytes_FN, names.length_F, names.number_F, names.is_one_F,
        line_LC, field_V, id_V, weight_V,
    )  # fmt: skip
    return Parsed(line_LC, field_V[:num_values], id_V[:num_values], weight_V[:num_values])


def apply_policies(line_LC: np.ndarray, reject_mismatch: bool, reject_without_click: bool) -> None:
    """Give good lines the two reasons that a policy may overlook."""
    good = line_LC[:, REASON] == GOOD
    if reject_mismatch:
        line_LC[good & (line_LC[:, MISMATCH] == 1), REASON] = COUNT_MISMATCH
        good = line_LC[:, REASON] == GOOD
    if reject_without_click:
        line_LC[good & (line_LC[:, LABELS] == BUY_BIT), REASON] = WITHOUT_CLICK


def _name_hash(name: Sequence[int]) -> int:
    hashed = 0
    for byte in name:
        hashed = hashed * 31 + byte
    return hashed


@nb.njit(cache=True)
def _parse_lines(buffer, is_skeleton, slot_S, bytes_FN, length_F, number_F, is_one_F, line_LC, field_V, id_V, weight_V):  # type: ignore[no-untyped-def]
    """Fill the outputs; the number of values. A bad line costs a second reading and leaves no value behind."""
    seen_F = np.full(len(length_F), -1, np.int64)  # the last line on which each field stood
    num_values = 0
    start = 0
    for line in range(len(line_LC)):
        row = line_LC[line]
        row[:] = 0
        row[START] = start
        first_value = num_values
        position = _columns(buffer, start, is_skeleton, row)
        if position >= 0:
            position, num_values = _features(
                buffer, position, slot_S, bytes_FN, length_F, number_F, is_one_F,
                seen_F, line, row, field_V, id_V, weight_V, num_values,
            )  # fmt: skip
        if position < 0:
            num_values = first_value
            position = start
            while buffer[position] != _LF:
                position += 1
            row[UNKNOWN] = row[REPEATED] = row[MISMATCH] = row[LABELS] = 0
            row[REASON] = _reason(buffer, start, position, is_skeleton, row)
        row[END] = position
        row[VALUES_END] = num_values
        start = position + 1
    return num_values


@nb.njit(cache=True)
def _columns(buffer, position, is_skeleton, row):  # type: ignore[no-untyped-def]
    """Read the columns before the features into `row`; the position of the features, or -1."""
    if is_skeleton:
        row[SAMPLE_ID], position = _integer(buffer, position, True)
        if position < 0 or buffer[position] != _COMMA:
            return -1
        for bit in (CLICK_BIT, BUY_BIT):
            label = np.int64(buffer[position + 1]) - _ZERO
            if (label != 0 and label != 1) or buffer[position + 2] != _COMMA:
                return -1
            row[LABELS] |= bit * label
            position += 2
        position += 1
    row[KEY], position = _key(buffer, position)
    if position < 0 or buffer[position] != _COMMA:
        return -1
    row[HAS_KEY] = 1
    row[MISMATCH], position = _integer(buffer, position + 1, False)  # the count said, until the features are counted
    if position < 0 or buffer[position] != _COMMA:
        return -1
    return position + 1


@nb.njit(cache=True)
def _features(  # type: ignore[no-untyped-def]
    buffer, position, slot_S, bytes_FN, length_F, number_F, is_one_F,
    seen_F, line, row, field_V, id_V, weight_V, num_values,
):  # fmt: skip
    """Read features up to the end of the line; (position of the line feed or -1, number of values)."""
    num_features = 0
    slot = last_name = last_length = 0
    if not _at_end(buffer, position):
        while True:
            # Values of one field mostly stand together: first see whether the name before comes again.
            same = 0
            while same < last_length and buffer[position + same] == buffer[last_name + same]:
                same += 1
            if last_length > 0 and same == last_length:
                position += last_length
            else:
                last_name = position
                hashed = 0
                while not _IS_BREAK[buffer[position]]:
                    hashed = hashed * 31 + np.int64(buffer[position])
                    position += 1
                if buffer[position] != _ID or position == last_name:
                    return -1, num_values
                slot = _find(buffer, last_name, position - last_name, hashed, slot_S, bytes_FN, length_F)
                position += 1
                last_length = position - last_name  # with its \x02, so that no name passes for a longer one
            raw_id, position = _integer(buffer, position, False)
            if position < 0 or buffer[position] != _VALUE:
                return -1, num_values
            weight, position = _number(buffer, position + 1)
            if position < 0:
                return -1, num_values
            num_features += 1
            if slot < 0:
                row[UNKNOWN] += 1
            elif is_one_F[slot] and seen_F[slot] == line:
                row[REPEATED] += 1  # the first occurrence stays
            else:
                seen_F[slot] = line
                field_V[num_values] = number_F[slot]
                id_V[num_values] = raw_id
                weight_V[num_values] = weight
                num_values += 1
            if buffer[position] != _JOIN:
                break
            position += 1
    if not _at_end(buffer, position):
        return -1, num_values
    row[MISMATCH] = np.int64(row[MISMATCH] != num_features)
    return position + np.int64(buffer[position] == _CR), num_values


@nb.njit(cache=True)
def _at_end(buffer, position):  # type: ignore[no-untyped-def]
    return buffer[position] == _LF or (buffer[position] == _CR and buffer[position + 1] == _LF)


@nb.njit(cache=True)
def _find(buffer, name, length, hashed, slot_S, bytes_FN, length_F):  # type: ignore[no-untyped-def]
    """The field of the scope with this name, or -1."""
    probe = hashed & (len(slot_S) - 1)
    while True:
        field = slot_S[probe]
        if field < 0:
            return -1
        if length_F[field] == length:
            same = True
            for i in range(length):
                same &= bytes_FN[field, i] == buffer[name + i]
            if same:
                return field
        probe = (probe + 1) & (len(slot_S) - 1)


@nb.njit(cache=True)
def _integer(buffer, position, signed):  # type: ignore[no-untyped-def]
    """(value, position behind it) of decimal digits that fit int64, or (0, -1)."""
    negative = signed and buffer[position] == _MINUS
    if negative:
        position += 1
    first = position
    value = 0
    while True:
        digit = np.int64(buffer[position]) - _ZERO
        if digit < 0 or digit > 9:
            break
        if position - first >= 18 and value > (_MAX_INT64 - digit) // 10:
            return 0, -1
        value = value * 10 + digit
        position += 1
    if position == first:
        return 0, -1
    return (-value if negative else value), position


@nb.njit(cache=True)
def _key(buffer, position):  # type: ignore[no-untyped-def]
    """(the 64 bits of 16 lower-case hex digits, position behind them), or (0, -1)."""
    value = 0
    for i in range(16):
        byte = np.int64(buffer[position + i])  # never past the line feed: it stops the loop
        if 48 <= byte <= 57:
            value = (value << 4) | (byte - 48)
        elif 97 <= byte <= 102:
            value = (value << 4) | (byte - 87)
        else:
            return 0, -1
    return value, position + 16


@nb.njit(cache=True)
def _number(buffer, position):  # type: ignore[no-untyped-def]
    """(float32 of a decimal number, position behind it), or (0, -1); what is behind it must end the feature.

    The double nearest to the text, rounded to float32. Up to 2^53 with a power of ten up to 22 both operands are exact
    doubles, so one division or product rounds once (Clinger 1990); the rest is libc's.
    """
    first = position
    negative = buffer[position] == _MINUS
    if negative or buffer[position] == _PLUS:
        position += 1
    mantissa = 0
    num_digits = exponent = 0
    is_short = True
    while True:
        digit = np.int64(buffer[position]) - _ZERO
        if digit < 0 or digit > 9:
            break
        is_short &= mantissa <= _MAX_SHORT
        mantissa = mantissa * 10 + digit
        num_digits += 1
        position += 1
    if buffer[position] == _DOT:
        position += 1
        while True:
            digit = np.int64(buffer[position]) - _ZERO
            if digit < 0 or digit > 9:
                break
            is_short &= mantissa <= _MAX_SHORT
            mantissa = mantissa * 10 + digit
            num_digits += 1
            exponent -= 1
            position += 1
    if num_digits == 0:
        return np.float32(0), -1
    if buffer[position] == 101 or buffer[position] == 69:  # e, E
        power, position = _exponent(buffer, position + 1)
        if position < 0:
            return np.float32(0), -1
        exponent += power
    if buffer[position] != _JOIN and not _at_end(buffer, position):
        return np.float32(0), -1
    if is_short and -22 <= exponent <= 22:
        value = mantissa / _POWERS[-exponent] if exponent < 0 else mantissa * _POWERS[exponent]
        value = -value if negative else value
    else:
        value = _strtod(buffer.ctypes.data + first, 0)
    if not abs(value) < _MAX_FLOAT32:
        return np.float32(0), -1
    return np.float32(value), position


@nb.njit(cache=True)
def _exponent(buffer, position):  # type: ignore[no-untyped-def]
    """(signed exponent, cut at a size that decides nothing more, position behind it), or (0, -1)."""
    negative = buffer[position] == _MINUS
    if negative or buffer[position] == _PLUS:
        position += 1
    first = position
    value = 0
    while 48 <= buffer[position] <= 57:
        value = min(value * 10 + np.int64(buffer[position]) - _ZERO, 100_000)
        position += 1
    if position == first:
        return 0, -1
    return (-value if negative else value), position


@nb.njit(cache=True)
def _reason(buffer, start, end, is_skeleton, row):  # type: ignore[no-untyped-def]
    """Why the line [start, end) cannot be read; finds its key too, if it has one."""
    num_columns = 6 if is_skeleton else 3
    comma_at = np.empty(num_columns, np.int64)
    num_commas = 0
    for i in range(start, end):
        if buffer[i] == _COMMA:
            if num_commas < num_columns:
                comma_at[num_commas] = i
            num_commas += 1
    row[HAS_KEY] = 0
    if num_commas != num_columns - 1:
        return MALFORMED_LINE
    if is_skeleton:
        _, behind = _integer(buffer, start, True)
        if behind != comma_at[0]:
            return MALFORMED_LINE
    _, behind = _integer(buffer, comma_at[num_columns - 3] + 1, False)
    if behind != comma_at[num_columns - 2]:
        return MALFORMED_LINE
    key_at = comma_at[2] + 1 if is_skeleton else start
    row[KEY], behind = _key(buffer, key_at)
    row[HAS_KEY] = np.int64(behind == comma_at[num_columns - 3])
    if is_skeleton:
        for column in (0, 1):
            label = buffer[comma_at[column] + 1]
            if comma_at[column + 1] - comma_at[column] != 2 or (label != 48 and label != 49):
                return BAD_LABEL
    if row[HAS_KEY] == 0:
        return BAD_CONTEXT_KEY
    return BAD_FEATURE
