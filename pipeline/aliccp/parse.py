"""The byte kernel: one pass over a chunk of whole lines gives every (field, id, weight) and the reason of a bad line.

    skeleton line   sample_id,click,buy,common_feature_index,num_features,feature \\x01 feature …
    context line    common_feature_index,num_features,feature \\x01 feature …
    feature         name \\x02 id \\x03 weight

A line ends in \\n or \\r\\n. A good line is walked once, a feature in three words of eight bytes (`_short_feature`) where
it has the usual lengths, else byte by byte (`_any_feature`); a line that cannot be read goes to `_reason`, which reads it
again by the book. Where several rules are broken, the first in the order of REASONS is the reason.
tests/support/references/aliccp.py is the slow twin.
"""

# Shapes: L lines, V values, F fields of a scope, N bytes of the longest name, S slots.

import numpy as np

from pipeline.aliccp.ascii_numbers import POWERS, digits, first_below, first_byte, integer, key, number, short_integer
from pipeline.aliccp.field_probe import Names, find, short_slot
from pipeline.chunks.chunk import Parsed
from pipeline.chunks.line_columns import (
    BUY_BIT,
    CLICK_BIT,
    END,
    HAS_KEY,
    KEY,
    LABELS,
    LINE_COLUMNS,
    MISMATCH,
    REASON,
    REPEATED,
    SAMPLE_ID,
    START,
    UNKNOWN,
    VALUES_END,
)
from pipeline.chunks.reasons import (
    BAD_CONTEXT_KEY,
    BAD_FEATURE,
    BAD_LABEL,
    COUNT_MISMATCH,
    GOOD,
    MALFORMED_LINE,
    WITHOUT_CLICK,
)
from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import WORD_BYTES, byte_at, word_at

_LF, _CR, _COMMA, _DOT, _ZERO = 10, 13, 44, 46, 48
_JOIN, _ID, _VALUE = 1, 2, 3  # \x01 between features, \x02 before the id, \x03 before the weight
_SMALLEST_FEATURE = len(b"1\x022\x033\x01")

_KEY_BYTES = 16
_SHORT_BYTES = 3 * WORD_BYTES  # the most that `_short_feature` looks at
_EACH = 0x0101010101010101  # times a byte: that byte in all eight of a word
_IDS, _VALUES, _SPACES = np.uint64(_ID * _EACH), np.uint64(_VALUE * _EACH), np.uint64(32 * _EACH)
_COMMAS = np.uint64(_COMMA * _EACH)
_FIRST = np.array([(1 << 8 * length) - 1 for length in range(9)] + [0], np.uint64)  # the first bytes of a word; 9: none
_IS_BREAK = np.zeros(256, np.bool_)
_IS_BREAK[[_JOIN, _ID, _VALUE, _LF, _COMMA]] = True


def parse(chunk: bytes, is_skeleton: bool, names: Names) -> Parsed:
    """Read `chunk`, whole lines of which the last ends in a line feed too."""
    assert chunk.endswith(b"\n")
    byte_B = np.frombuffer(chunk, np.uint8)
    line_table = np.empty((np.count_nonzero(byte_B == _LF), LINE_COLUMNS), np.int64)
    most = len(chunk) // _SMALLEST_FEATURE + 1
    field_V, id_V, weight_V = np.empty(most, np.int16), np.empty(most, np.int64), np.empty(most, np.float32)
    num_values = _parse_lines(
        byte_B.ctypes.data, len(chunk), is_skeleton, names.slot_S, names.bytes_FN, names.length_F, names.number_F, names.is_one_F, names.short_S2,
        line_table, field_V, id_V, weight_V,
    )  # fmt: skip
    return Parsed(line_table, field_V[:num_values], id_V[:num_values], weight_V[:num_values])


def apply_policies(line_table: np.ndarray, reject_mismatch: bool, reject_without_click: bool) -> None:
    """Give good lines the two reasons that a policy may overlook."""
    good = line_table[:, REASON] == GOOD
    if reject_mismatch:
        line_table[good & (line_table[:, MISMATCH] == 1), REASON] = COUNT_MISMATCH
        good = line_table[:, REASON] == GOOD
    if reject_without_click:
        line_table[good & (line_table[:, LABELS] == BUY_BIT), REASON] = WITHOUT_CLICK


@nb.njit(cache=True)
def _parse_lines(  # type: ignore[no-untyped-def]
    text, num_bytes, is_skeleton, slot_S, bytes_FN, length_F, number_F, is_one_F, short_S2,
    line_table, field_V, id_V, weight_V,
):  # fmt: skip
    """Fill the outputs; the number of values. A bad line costs a second reading and leaves no value behind."""
    seen_F = np.full(len(length_F), -1, np.int64)  # the last line on which each field stood
    num_values = 0
    start = 0
    for line in range(len(line_table)):
        first_value = num_values
        num_features = num_unknown = num_repeated = 0
        position, sample_id, labels, key_, num_said = _columns(text, start, num_bytes, is_skeleton)
        is_more = position >= 0 and not _is_end(text, position)
        while is_more:
            field, raw_id, weight, behind = 0, 0, np.float32(0), np.int64(-1)
            if position + _SHORT_BYTES <= num_bytes:
                name, raw_id, weight, behind = _short_feature(text, position)
                slot = short_slot(name, len(short_S2))
                field = np.int64(short_S2[slot, 1])
                behind = behind if short_S2[slot, 0] == name else -1
            if behind < 0:
                field, raw_id, weight, behind = _any_feature(text, position, slot_S, bytes_FN, length_F)
            position = behind
            if position < 0:
                break
            num_features += 1
            if field < 0:
                num_unknown += 1
            else:
                # Written in any case: whether it stays is not worth a branch. The first occurrence stays.
                field_V[num_values] = number_F[field]
                id_V[num_values] = raw_id
                weight_V[num_values] = weight
                is_repeated = is_one_F[field] & (seen_F[field] == line)
                seen_F[field] = line
                num_repeated += is_repeated
                num_values += not is_repeated
            is_more = byte_at(text, position) == _JOIN
            position += is_more
        reason, has_key = GOOD, True
        if position < 0 or not _is_end(text, position):
            num_values = first_value
            num_features = num_said = num_unknown = num_repeated = labels = sample_id = 0
            position = start
            while byte_at(text, position) != _LF:
                position += 1
            reason, key_, has_key = _reason(text, start, position, is_skeleton)
        elif byte_at(text, position) == _CR:
            position += 1
        line_table[line, START] = start
        line_table[line, END] = position
        line_table[line, REASON] = reason
        line_table[line, KEY] = key_
        line_table[line, HAS_KEY] = has_key
        line_table[line, SAMPLE_ID] = sample_id
        line_table[line, LABELS] = labels
        line_table[line, MISMATCH] = num_said != num_features
        line_table[line, VALUES_END] = num_values
        line_table[line, UNKNOWN] = num_unknown
        line_table[line, REPEATED] = num_repeated
        start = position + 1
    return num_values


@nb.njit(cache=True, inline="always")
def _columns(text, position, num_bytes, is_skeleton):  # type: ignore[no-untyped-def]
    """(position of the features or -1, sample id, labels, key, number of features said) of the columns before them."""
    sample_id = labels = 0
    if is_skeleton:
        sample_id, position = _integer(text, position, num_bytes, True)
        if position < 0 or byte_at(text, position) != _COMMA:
            return -1, 0, 0, 0, 0
        for bit in (CLICK_BIT, BUY_BIT):
            label = byte_at(text, position + 1) - _ZERO
            if (label != 0 and label != 1) or byte_at(text, position + 2) != _COMMA:
                return -1, 0, 0, 0, 0
            labels |= bit * label
            position += 2
        position += 1
    if position + _KEY_BYTES > num_bytes:
        return -1, 0, 0, 0, 0
    key_, position = key(text, position)
    if position < 0 or byte_at(text, position) != _COMMA:
        return -1, 0, 0, 0, 0
    num_said, position = _integer(text, position + 1, num_bytes, False)
    if position < 0 or byte_at(text, position) != _COMMA:
        return -1, 0, 0, 0, 0
    return position + 1, sample_id, labels, key_, num_said


@nb.njit(cache=True, inline="always")
def _integer(text, position, num_bytes, signed):  # type: ignore[no-untyped-def]
    """`integer`, by the short way where it can."""
    if position + WORD_BYTES <= num_bytes:
        value, length, is_short = short_integer(word_at(text, position), _COMMAS)
        if is_short:
            return value, position + length
    return integer(text, position, signed)


@nb.njit(cache=True, inline="always")
def _short_feature(text, position):  # type: ignore[no-untyped-def]
    """(name as a word, id, weight, position behind), of an id of up to 7 digits and a weight such as 1.0 or 0.69315.

    Position -1 means only that `_any_feature` must look. Everything is computed, whatever it is worth, and judged once
    at the end: one branch a feature, nearly always the same way, where a branch a byte is guessed wrong at each end.
    """
    name = word_at(text, position)
    length = first_byte(name, _IDS)
    name &= _FIRST[length + 1]  # with its \x02, or a NUL byte behind a name would pass for none
    position += length + 1
    raw_id, length, is_short = short_integer(word_at(text, position), _VALUES)
    position += length + 1
    digits_and_dot = word_at(text, position)
    length = first_below(digits_and_dot, _SPACES)
    second = digits_and_dot >> np.uint64(8)
    mantissa, wrong = digits((digits_and_dot & _FIRST[1]) | (second & ~_FIRST[1]), length - 1)
    is_short &= (wrong == 0) & (length >= 3) & (length <= 7) & (second & _FIRST[1] == _DOT)
    weight = np.float32(np.float64(np.int64(mantissa)) / POWERS[(length - 2) & 7])  # exact operands: see `number`
    return name, raw_id, weight, (position + length if is_short else -1)


@nb.njit(cache=True)
def _any_feature(text, position, slot_S, bytes_FN, length_F):  # type: ignore[no-untyped-def]
    """(field of the scope or -1 if unknown, id, weight, position behind); that position is -1 if it is no feature."""
    name = position
    hashed = 0
    while not _IS_BREAK[byte_at(text, position)]:
        hashed = hashed * 31 + byte_at(text, position)
        position += 1
    if byte_at(text, position) != _ID or position == name:
        return -1, 0, np.float32(0), -1
    field = find(text, name, position - name, hashed, slot_S, bytes_FN, length_F)
    raw_id, position = integer(text, position + 1, False)
    if position < 0 or byte_at(text, position) != _VALUE:
        return -1, 0, np.float32(0), -1
    weight, position = number(text, position + 1)
    return field, raw_id, weight, position


@nb.njit(cache=True, inline="always")
def _is_end(text, position):  # type: ignore[no-untyped-def]
    byte = byte_at(text, position)
    return byte == _LF or (byte == _CR and byte_at(text, position + 1) == _LF)


@nb.njit(cache=True)
def _reason(text, start, end, is_skeleton):  # type: ignore[no-untyped-def]
    """(why the line [start, end) cannot be read, its key, whether it has one)."""
    num_columns = 6 if is_skeleton else 3
    comma_at = np.empty(num_columns, np.int64)
    num_commas = 0
    for i in range(start, end):
        if byte_at(text, i) == _COMMA:
            if num_commas < num_columns:
                comma_at[num_commas] = i
            num_commas += 1
    if num_commas != num_columns - 1:
        return MALFORMED_LINE, 0, False
    if is_skeleton:
        _, behind = integer(text, start, True)
        if behind != comma_at[0]:
            return MALFORMED_LINE, 0, False
    _, behind = integer(text, comma_at[num_columns - 3] + 1, False)
    if behind != comma_at[num_columns - 2]:
        return MALFORMED_LINE, 0, False
    key_at, key_end = comma_at[2] + 1 if is_skeleton else start, comma_at[num_columns - 3]
    key_, behind = key(text, key_at) if key_end - key_at == _KEY_BYTES else (0, -1)
    has_key = behind == key_end
    if is_skeleton:
        for column in (0, 1):
            label = byte_at(text, comma_at[column] + 1)
            if comma_at[column + 1] - comma_at[column] != 2 or (label != 48 and label != 49):
                return BAD_LABEL, key_, has_key
    if not has_key:
        return BAD_CONTEXT_KEY, key_, has_key
    return BAD_FEATURE, key_, has_key
