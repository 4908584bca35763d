r"""The bytes of a simulated chunk: one kernel for the lines of contexts, one for those of impressions.

    3f9c0a…e1,518,101\x02 7 \x031.0\x01121\x02 31 \x031.0\x01109_14\x02 8120 \x030.69315 …\n
    17,1,0,3f9c0a…e1,13,205\x02 4021 \x031.0\x01206\x02 77 \x031.0 …\n          (without the spaces)

The fields of a line stand in a rotated order, another for each line, as readers must not rely on any.
"""

# Shapes: B impressions, C contexts, F fields of the log, N texts, P profile fields, S bytes of the longest text.

from typing import NamedTuple

import numpy as np

from pipeline.features.fields import Catalogue
from pipeline.kernels.hashing import mix
from pipeline.kernels.jit import nb
from pipeline.simulate.draw import (
    BRAND,
    CATEGORY,
    CROSS,
    INTENTION,
    ITEM,
    MAX_COUNT,
    POSITION_BIT,
    SHOP,
    DrawnImpressions,
)
from pipeline.simulate.published_figures import (
    CROSS_FIELDS,
    ITEM_FIELDS,
    LIST_FIELDS,
    PROFILE_CARDINALITY,
    IdBlock,
    require_raw_ids,
)
from pipeline.simulate.world import SimulatedWorld

CONTEXT_FIELDS = ("user_id", *PROFILE_CARDINALITY, *LIST_FIELDS)
IMPRESSION_FIELDS = (*ITEM_FIELDS, *CROSS_FIELDS, "item_id", "position")
_FIRST_LIST = 1 + len(PROFILE_CARDINALITY)
_NUM_CONTEXT_FIELDS = len(CONTEXT_FIELDS)
_NUM_IMPRESSION_FIELDS = len(IMPRESSION_FIELDS)
_BIT_OF_FIELD = np.array([CATEGORY, SHOP, BRAND, INTENTION, CROSS, CROSS, CROSS, CROSS, ITEM, POSITION_BIT], np.uint8)
_ITEM_ID, _POSITION = 8, 9  # places in IMPRESSION_FIELDS
#: More bytes than any feature or the head of any line takes; buffers are sized by it.
_LONGEST_FEATURE, _LONGEST_HEAD = 48, 96


class LineLayout(NamedTuple):
    """The spelling of the fields of one table (a NamedTuple, because numba takes it as it is)."""

    tags: np.ndarray  # uint8 [F, S]: raw id and \x02
    tag_length_F: np.ndarray
    id_blocks: np.ndarray  # int64 [4, F]: first, size, stride, shift of the field's ids (IdBlock)
    weights: np.ndarray  # uint8 [N, S]: ln(1 + n) as the log prints it
    weight_length_N: np.ndarray
    first_taxa: np.ndarray  # int64 [4]: where categories, shops, brands, intentions begin among the taxa


def weight_text(count: int) -> str:
    """Write the weight of a list entry that was counted `count` times: ln 2, ln 3, … with five decimals."""
    return repr(round(float(np.log1p(count)), 5))


def line_layout(
    catalogue: Catalogue, fields: tuple[str, ...], blocks: dict[str, IdBlock], world: SimulatedWorld
) -> LineLayout:
    """Return the layout of `fields`, whose ids are those of `blocks`; InputError if the catalogue lacks a field."""
    tags = [raw_id + b"\x02" for raw_id in require_raw_ids(catalogue, fields)]
    weights = [weight_text(count).encode() for count in range(MAX_COUNT + 1)]
    ids = [blocks[name] for name in fields]
    first_taxa = [0, *world.tables.block_starts[:3, 0].tolist()]
    return LineLayout(
        *_pad_texts(tags),
        np.array([[block.first, block.size, block.stride, block.shift] for block in ids], np.int64).T.copy(),
        *_pad_texts(weights),
        np.array(first_taxa, np.int64),
    )


def _pad_texts(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts, each padded to the longest (uint8 [N, S]), and their lengths."""
    length_N = np.array([len(text) for text in texts], np.int64)
    padded = b"".join(text.ljust(length_N.max(), b"\0") for text in texts)
    return np.frombuffer(padded, np.uint8).reshape(len(texts), -1).copy(), length_N


def context_lines(
    layout: LineLayout, world: SimulatedWorld, chunk: DrawnImpressions, keys: np.ndarray, rotations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Write the chunk's lines of common_features (uint8); also return where each ends (int64 [C])."""
    profile_values = np.stack([user_values[chunk.users] for user_values in world.profile.values()])
    profile_values = np.where(chunk.has_profile, profile_values, -1)
    users = np.where(chunk.has_user_id, chunk.users, -1)
    values = np.vstack([users, profile_values]).astype(np.int64)
    return _context_lines(layout, chunk.columns, values, keys, rotations)


def impression_lines(
    layout: LineLayout,
    world: SimulatedWorld,
    chunk: DrawnImpressions,
    keys: np.ndarray,
    first_id: int,
    click_and_buy: np.ndarray,
    rotations: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Write the chunk's lines of sample_skeleton (uint8); also return where each ends (int64 [B]).

    `keys` ([C, 16]) are those of the chunk's contexts; `click_and_buy` is uint8 [2, B].
    """
    return _impression_lines(
        layout, chunk.columns, world.tables, chunk.context_of, keys, first_id, click_and_buy, rotations
    )


@nb.njit(cache=True)
def _context_lines(layout, columns, values, keys, rotations):  # type: ignore[no-untyped-def]
    contexts = len(rotations)
    capacity = contexts * _LONGEST_HEAD + (columns.entry_ends[-1] + values.size) * _LONGEST_FEATURE
    text, line_ends, at = np.empty(capacity, np.uint8), np.empty(contexts, np.int64), 0
    begin = 0
    for context in range(contexts):
        end = columns.entry_ends[context]
        features = end - begin
        for field in range(len(values)):
            features += values[field, context] >= 0
        at = _put(text, at, keys[context], 16)
        at = _put_number_and_comma(text, _comma(text, at), features)
        for step in range(_NUM_CONTEXT_FIELDS):
            field = (rotations[context] + step) % _NUM_CONTEXT_FIELDS
            if field < _FIRST_LIST:
                if values[field, context] >= 0:
                    at = _put_feature(text, at, layout, field, values[field, context], -1)
                continue
            first = layout.first_taxa[field - _FIRST_LIST]
            stop = first + layout.id_blocks[1, field]
            for entry in range(begin, end):
                taxon = columns.entry_taxa[entry]
                if first <= taxon < stop:
                    at = _put_feature(text, at, layout, field, taxon - first, columns.entry_counts[entry])
        at = _end_line(text, at, features)
        line_ends[context] = at
        begin = end
    return text[:at], line_ends


@nb.njit(cache=True)
def _impression_lines(  # type: ignore[no-untyped-def]
    layout, columns, tables, context_of, keys, first_id, click_and_buy, rotations
):
    impressions = len(rotations)
    most = _NUM_IMPRESSION_FIELDS * impressions + 2 * columns.num_intentions.sum()
    text = np.empty(impressions * _LONGEST_HEAD + most * _LONGEST_FEATURE, np.uint8)
    line_ends, at = np.empty(impressions, np.int64), 0
    for row in range(impressions):
        features = _num_features(columns, row)
        at = _put_number_and_comma(text, at, first_id + row)
        for label in range(2):
            text[at] = 48 + click_and_buy[label, row]
            at = _comma(text, at + 1)
        at = _put(text, at, keys[context_of[row]], 16)
        at = _put_number_and_comma(text, _comma(text, at), features)
        at = _put_impression(text, at, layout, columns, tables, rotations[row], row)
        at = _end_line(text, at, features)
        line_ends[row] = at
    return text[:at], line_ends


@nb.njit(cache=True)
def _num_features(columns, row):  # type: ignore[no-untyped-def]
    """Count the features of one impression as `_put_impression` writes them."""
    present, intentions = columns.present_fields[row], columns.num_intentions[row]
    features = 0
    for bit in (ITEM, CATEGORY, SHOP, BRAND, POSITION_BIT):
        features += (present & bit) != 0
    if present & INTENTION:
        features += intentions
    if present & CROSS:
        for kind in range(3):
            features += columns.shared_counts[kind, row] > 0
        for which in range(intentions):
            features += columns.shared_intentions[row, which] > 0
    return features


@nb.njit(cache=True)
def _put_impression(text, at, layout, columns, tables, rotation, row):  # type: ignore[no-untyped-def]
    """Write the features of one impression: its item's own (0–3), what item and lists share (4–7), item id, position."""
    present = columns.present_fields[row]
    category = columns.taxa[0, row]
    first, size = tables.block_starts[2, category], tables.block_sizes[2, category]  # of its intentions
    for step in range(_NUM_IMPRESSION_FIELDS):
        field = (rotation + step) % _NUM_IMPRESSION_FIELDS
        if not present & _BIT_OF_FIELD[field]:
            continue
        kind, shared = field % 4, 4 <= field < _ITEM_ID
        values = columns.num_intentions[row] if kind == 3 and field < _ITEM_ID else 1
        for which in range(values):
            count = -1
            if field == _ITEM_ID:
                value = np.int64(columns.items[row])
            elif field == _POSITION:
                value = np.int64(columns.positions[row])
            elif kind == 3:
                value = first + (columns.taxa[3, row] - first + which) % size - layout.first_taxa[3]
                count = columns.shared_intentions[row, which] if shared else -1
            else:
                value = np.int64(columns.taxa[kind, row]) - layout.first_taxa[kind]
                count = columns.shared_counts[kind, row] if shared else -1
            if count != 0:
                at = _put_feature(text, at, layout, field, value, count)
    return at


@nb.njit(cache=True, inline="always")
def _put_feature(text, at, layout, field, value, count):  # type: ignore[no-untyped-def]
    """Write one feature and the \\x01 after it; the weight is ln(1 + count), or 1.0 for a count of -1."""
    at = _put(text, at, layout.tags[field], layout.tag_length_F[field])
    id_blocks = layout.id_blocks
    number = id_blocks[0, field] + (value * id_blocks[2, field] + id_blocks[3, field]) % id_blocks[1, field]
    at = _put_number(text, at, number)
    text[at] = 3
    at += 1
    if count < 0:
        text[at], text[at + 1], text[at + 2] = 49, 46, 48  # 1.0
        at += 3
    else:
        at = _put(text, at, layout.weights[count], layout.weight_length_N[count])
    text[at] = 1
    return at + 1


@nb.njit(cache=True)
def _put(text, at, piece, length):  # type: ignore[no-untyped-def]
    for i in range(length):
        text[at + i] = piece[i]
    return at + length


@nb.njit(cache=True)
def _put_number(text, at, number):  # type: ignore[no-untyped-def]
    digits, rest = 1, number
    while rest >= 10:
        rest //= 10
        digits += 1
    for place in range(at + digits - 1, at - 1, -1):
        text[place] = 48 + number % 10
        number //= 10
    return at + digits


@nb.njit(cache=True)
def _comma(text, at):  # type: ignore[no-untyped-def]
    text[at] = 44
    return at + 1


@nb.njit(cache=True)
def _put_number_and_comma(text, at, number):  # type: ignore[no-untyped-def]
    return _comma(text, _put_number(text, at, number))


@nb.njit(cache=True)
def _end_line(text, at, features):  # type: ignore[no-untyped-def]
    """Put the line end in the place of the last \\x01, or after the comma of a line without features."""
    at -= features > 0
    text[at] = 10
    return at + 1


@nb.njit(cache=True)
def context_keys(counters: np.ndarray, salt: np.uint64) -> np.ndarray:
    """Return context keys, 16 hex digits each: uint8 [C, 16]. Different counters give different keys (a bijection)."""
    keys = np.empty((len(counters), 16), np.uint8)
    for context in range(len(counters)):
        x = mix(np.uint64(counters[context]) ^ salt)
        for place in range(16):
            nibble = np.uint8((x >> np.uint64(60 - 4 * place)) & np.uint64(15))
            keys[context, place] = nibble + (np.uint8(48) if nibble < 10 else np.uint8(87))
    return keys
