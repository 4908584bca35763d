"""Parse a chunk of whole lines in one pass over its bytes: every (field, id, weight), and the reason of a bad line.

    skeleton line   sample_id,click,buy,common_feature_index,num_features,feature \\x01 feature …
                    without labels: click and buy are empty, or the two columns are not there
    context line    common_feature_index,num_features,feature \\x01 feature …
    feature         name \\x02 id \\x03 weight

A line ends in \\n or \\r\\n. A good line is read once. A feature of the usual lengths is three words of eight bytes
(`_short_feature`); any other is read byte by byte (`_any_feature`). A line that cannot be read goes to
`_find_reason`, which reads it again, column by column. If it breaks several rules, its reason is the first in the
order of REASONS. tests/support/references/aliccp.py is the slow twin.
"""

# Shapes: L lines, V values, F fields of a scope.

import numpy as np

from pipeline.aliccp.ascii_numbers import (
    DOT,
    IN_EACH_BYTE,
    POWERS,
    ZERO,
    digits,
    first_below,
    first_byte,
    integer,
    key,
    number,
    short_integer,
)
from pipeline.aliccp.field_probe import Names, find_field, short_slot
from pipeline.chunks.chunk import Parsed
from pipeline.chunks.line_columns import (
    BUY_BIT,
    CLICK_BIT,
    END,
    HAS_KEY,
    KEY,
    LABEL_FLAGS,
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

_LF, _CR, _COMMA = 10, 13, 44
_FEATURE_MARK, _ID_MARK, _WEIGHT_MARK = 1, 2, 3  # \x01 between features, \x02 before the id, \x03 before the weight
_SMALLEST_FEATURE = len(b"1\x022\x033\x01")

_KEY_BYTES = 16
_SHORT_BYTES = 3 * WORD_BYTES  # the most that `_short_feature` reads
_ID_MARKS, _WEIGHT_MARKS, _SPACES = (
    np.uint64(_ID_MARK * IN_EACH_BYTE),
    np.uint64(_WEIGHT_MARK * IN_EACH_BYTE),
    np.uint64(32 * IN_EACH_BYTE),
)
_COMMAS = np.uint64(_COMMA * IN_EACH_BYTE)
_FIRST = np.array([(1 << 8 * length) - 1 for length in range(9)] + [0], np.uint64)  # the first bytes of a word; 9: none
_IS_BREAK = np.zeros(256, np.bool_)
_IS_BREAK[[_FEATURE_MARK, _ID_MARK, _WEIGHT_MARK, _LF, _COMMA]] = True


def parse(chunk: bytes, is_skeleton: bool, names: Names, needs_labels: bool = True) -> Parsed:
    """Parse `chunk`, whole lines that all end in a line feed; an impression may lack its labels unless `needs_labels`."""
    assert chunk.endswith(b"\n")
    text_bytes = np.frombuffer(chunk, np.uint8)
    line_table = np.empty((np.count_nonzero(text_bytes == _LF), LINE_COLUMNS), np.int64)
    most = len(chunk) // _SMALLEST_FEATURE + 1
    field_V, id_V, weight_V = np.empty(most, np.int16), np.empty(most, np.int64), np.empty(most, np.float32)
    num_values = _parse_lines(
        text_bytes.ctypes.data, len(chunk), is_skeleton, needs_labels, names, line_table, field_V, id_V, weight_V
    )
    return Parsed(line_table, field_V[:num_values], id_V[:num_values], weight_V[:num_values])


def reject_whole(line: bytes) -> Parsed:
    """Return what `parse` returns of a malformed line, for one that is not looked into: it is too long."""
    line_table = np.zeros((1, LINE_COLUMNS), np.int64)
    line_table[0, END], line_table[0, REASON] = len(line) - 1, MALFORMED_LINE
    return Parsed(line_table, np.empty(0, np.int16), np.empty(0, np.int64), np.empty(0, np.float32))


def apply_policies(line_table: np.ndarray, reject_mismatch: bool, reject_without_click: bool) -> None:
    """Reject good lines for the two reasons that a policy may also keep; `line_table` is changed in place."""
    good = line_table[:, REASON] == GOOD
    if reject_mismatch:
        line_table[good & (line_table[:, MISMATCH] == 1), REASON] = COUNT_MISMATCH
        good = line_table[:, REASON] == GOOD
    if reject_without_click:
        line_table[good & (line_table[:, LABEL_FLAGS] == BUY_BIT), REASON] = WITHOUT_CLICK


@nb.njit(cache=True)
def _parse_lines(text, num_bytes, is_skeleton, needs_labels, names, line_table, field_V, id_V, weight_V):  # type: ignore[no-untyped-def]
    """Fill the outputs and return the number of values. A bad line is read a second time, and has no values."""
    slots, name_bytes, length_F, number_F, is_single_F, short_names = names
    seen_F = np.full(len(length_F), -1, np.int64)  # the last line on which each field stood
    num_values = 0
    start = 0
    for line in range(len(line_table)):
        first_value = num_values
        num_features = num_unknown = num_repeated = 0
        position, sample_id, labels, key_, num_declared = _leading_columns(
            text, start, num_bytes, is_skeleton, needs_labels
        )
        is_more = position >= 0 and not _is_end(text, position)
        while is_more:
            field, raw_id, weight, behind = 0, 0, np.float32(0), np.int64(-1)
            if position + _SHORT_BYTES <= num_bytes:
                name, raw_id, weight, behind = _short_feature(text, position)
                slot = short_slot(name, len(short_names))
                field = np.int64(short_names[slot, 1])
                behind = behind if short_names[slot, 0] == name else -1
            if behind < 0:
                field, raw_id, weight, behind = _any_feature(text, position, slots, name_bytes, length_F)
            position = behind
            if position < 0:
                break
            num_features += 1
            if field < 0:
                num_unknown += 1
            else:
                # Write always, and advance `num_values` only for a first occurrence: no branch.
                field_V[num_values] = number_F[field]
                id_V[num_values] = raw_id
                weight_V[num_values] = weight
                is_repeated = is_single_F[field] & (seen_F[field] == line)
                seen_F[field] = line
                num_repeated += is_repeated
                num_values += not is_repeated
            is_more = byte_at(text, position) == _FEATURE_MARK
            position += is_more
        reason, has_key = GOOD, True
        if position < 0 or not _is_end(text, position):
            num_values = first_value
            num_features = num_declared = num_unknown = num_repeated = labels = sample_id = 0
            position = start
            while byte_at(text, position) != _LF:
                position += 1
            reason, key_, has_key = _find_reason(text, start, position, is_skeleton, needs_labels)
        elif byte_at(text, position) == _CR:
            position += 1
        line_table[line, START] = start
        line_table[line, END] = position
        line_table[line, REASON] = reason
        line_table[line, KEY] = key_
        line_table[line, HAS_KEY] = has_key
        line_table[line, SAMPLE_ID] = sample_id
        line_table[line, LABEL_FLAGS] = labels
        line_table[line, MISMATCH] = num_declared != num_features
        line_table[line, VALUES_END] = num_values
        line_table[line, UNKNOWN] = num_unknown
        line_table[line, REPEATED] = num_repeated
        start = position + 1
    return num_values


@nb.njit(cache=True, inline="always")
def _leading_columns(text, position, num_bytes, is_skeleton, needs_labels):  # type: ignore[no-untyped-def]
    """Parse the columns before the features.

    Return (position behind or -1, sample id, labels, key, declared number of features).
    """
    sample_id = labels = 0
    if is_skeleton:
        sample_id, position = _fast_integer(text, position, num_bytes, True)
        if position < 0 or byte_at(text, position) != _COMMA:
            return -1, 0, 0, 0, 0
        for bit in (CLICK_BIT, BUY_BIT):
            label = byte_at(text, position + 1) - ZERO
            if (label != 0 and label != 1) or byte_at(text, position + 2) != _COMMA:
                if needs_labels:
                    return -1, 0, 0, 0, 0
                if byte_at(text, position + 1) == _COMMA:  # an empty label
                    position += 1
                    continue
                if bit == BUY_BIT:
                    return -1, 0, 0, 0, 0
                break  # no columns of labels: the key comes next
            labels |= bit * label
            position += 2
        position += 1
    if position + _KEY_BYTES > num_bytes:
        return -1, 0, 0, 0, 0
    key_, position = key(text, position)
    if position < 0 or byte_at(text, position) != _COMMA:
        return -1, 0, 0, 0, 0
    num_declared, position = _fast_integer(text, position + 1, num_bytes, False)
    if position < 0 or byte_at(text, position) != _COMMA:
        return -1, 0, 0, 0, 0
    return position + 1, sample_id, labels, key_, num_declared


@nb.njit(cache=True, inline="always")
def _fast_integer(text, position, num_bytes, signed):  # type: ignore[no-untyped-def]
    """Parse an integer as `integer` does, by the branchless path if it is short."""
    if position + WORD_BYTES <= num_bytes:
        value, length, is_short = short_integer(word_at(text, position), _COMMAS)
        if is_short:
            return value, position + length
    return integer(text, position, signed)


@nb.njit(cache=True, inline="always")
def _short_feature(text, position):  # type: ignore[no-untyped-def]
    """Parse a feature with an id of up to 7 digits and a weight such as 1.0.

    Return (name as a word, id, weight, position behind). Position -1 only means that `_any_feature` must read it.
    Everything is computed, and validated once at the end. That is one branch a feature, nearly always taken the same
    way; a branch a byte is mispredicted at the end of each number.
    """
    name = word_at(text, position)
    length = first_byte(name, _ID_MARKS)
    name &= _FIRST[length + 1]  # with its \x02, or a NUL byte behind a name would pass for none
    position += length + 1
    raw_id, length, is_short = short_integer(word_at(text, position), _WEIGHT_MARKS)
    position += length + 1
    digits_and_dot = word_at(text, position)
    length = first_below(digits_and_dot, _SPACES)
    second = digits_and_dot >> np.uint64(8)
    mantissa, wrong = digits((digits_and_dot & _FIRST[1]) | (second & ~_FIRST[1]), length - 1)
    is_short &= (wrong == 0) & (length >= 3) & (length <= 7) & (second & _FIRST[1] == DOT)
    weight = np.float32(np.float64(np.int64(mantissa)) / POWERS[(length - 2) & 7])  # exact operands: see `number`
    return name, raw_id, weight, (position + length if is_short else -1)


@nb.njit(cache=True)
def _any_feature(text, position, slots, name_bytes, length_F):  # type: ignore[no-untyped-def]
    """Parse any feature.

    Return (position in the scope or -1 if unknown, id, weight, position behind or -1 if it is none).
    """
    name = position
    hashed = 0
    while not _IS_BREAK[byte_at(text, position)]:
        hashed = hashed * 31 + byte_at(text, position)
        position += 1
    if byte_at(text, position) != _ID_MARK or position == name:
        return -1, 0, np.float32(0), -1
    field = find_field(text, name, position - name, hashed, slots, name_bytes, length_F)
    raw_id, position = integer(text, position + 1, False)
    if position < 0 or byte_at(text, position) != _WEIGHT_MARK:
        return -1, 0, np.float32(0), -1
    weight, position = number(text, position + 1)
    return field, raw_id, weight, position


@nb.njit(cache=True, inline="always")
def _is_end(text, position):  # type: ignore[no-untyped-def]
    byte = byte_at(text, position)
    return byte == _LF or (byte == _CR and byte_at(text, position + 1) == _LF)


@nb.njit(cache=True)
def _find_reason(text, start, end, is_skeleton, needs_labels):  # type: ignore[no-untyped-def]
    """Find out why the line [start, end) cannot be read: return (reason, key, whether it has a key)."""
    num_columns = 6 if is_skeleton else 3
    comma_at = np.empty(num_columns, np.int64)
    num_commas = 0
    for i in range(start, end):
        if byte_at(text, i) == _COMMA:
            if num_commas < num_columns:
                comma_at[num_commas] = i
            num_commas += 1
    has_labels = is_skeleton
    if is_skeleton and not needs_labels and num_commas == 3:
        num_columns, has_labels = 4, False
    if num_commas != num_columns - 1:
        return MALFORMED_LINE, 0, False
    if is_skeleton:
        _, behind = integer(text, start, True)
        if behind != comma_at[0]:
            return MALFORMED_LINE, 0, False
    _, behind = integer(text, comma_at[num_columns - 3] + 1, False)
    if behind != comma_at[num_columns - 2]:
        return MALFORMED_LINE, 0, False
    key_at, key_end = comma_at[num_columns - 4] + 1 if is_skeleton else start, comma_at[num_columns - 3]
    key_, behind = key(text, key_at) if key_end - key_at == _KEY_BYTES else (0, -1)
    has_key = behind == key_end
    if has_labels:
        for column in (0, 1):
            label, width = byte_at(text, comma_at[column] + 1), comma_at[column + 1] - comma_at[column] - 1
            is_label = width == 1 and (label == 48 or label == 49)
            if not (is_label or (width == 0 and not needs_labels)):
                return BAD_LABEL, key_, has_key
    if not has_key:
        return BAD_CONTEXT_KEY, key_, has_key
    return BAD_FEATURE, key_, has_key
