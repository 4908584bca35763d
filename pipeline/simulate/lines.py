r"""The bytes of a simulated chunk: one kernel for the lines of contexts, one for those of impressions.

    3f9c0a…e1,518,101\x02 7 \x031.0\x01121\x02 31 \x031.0\x01109_14\x02 8120 \x030.69315 …\n
    17,1,0,3f9c0a…e1,13,205\x02 4021 \x031.0\x01206\x02 77 \x031.0 …\n          (without the spaces)

The fields of a line stand in a rotated order, another for each line, as readers must not rely on any.
"""

# Shapes: C contexts, B impressions, P profile fields, F fields of the log, S bytes of a short text.

from typing import NamedTuple

import numpy as np

from pipeline.features.fields import Catalogue
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
    raw_ids_of,
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
    """How the fields of one scope are written (a NamedTuple, because numba takes it as it is)."""

    tag_FS: np.ndarray  # uint8: raw id and \x02
    tag_length_F: np.ndarray
    block_4F: np.ndarray  # int64: first, size, stride, shift of the field's ids (shapes.IdBlock)
    weight_NS: np.ndarray  # uint8: ln(1 + n) as the log prints it
    weight_length_N: np.ndarray
    first_taxon_4: np.ndarray  # int64: where categories, shops, brands, intentions begin among the taxa


def weight_text(count: int) -> str:
    """The weight of a list entry that was counted `count` times: ln 2, ln 3, … with five decimals."""
    return repr(round(float(np.log1p(count)), 5))


def layout(
    catalogue: Catalogue, fields: tuple[str, ...], blocks: dict[str, IdBlock], world: SimulatedWorld
) -> LineLayout:
    """The layout of `fields`, whose ids are those of `blocks`."""
    tags = [raw_id + b"\x02" for raw_id in raw_ids_of(catalogue, fields)]
    weights = [weight_text(count).encode() for count in range(MAX_COUNT + 1)]
    ids = [blocks[name] for name in fields]
    first_4 = [0, *world.tables.first_4G[:3, 0].tolist()]
    return LineLayout(
        *_texts(tags),
        np.array([[block.first, block.size, block.stride, block.shift] for block in ids], np.int64).T.copy(),
        *_texts(weights),
        np.array(first_4, np.int64),
    )


def _texts(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    length_N = np.array([len(text) for text in texts], np.int64)
    padded = b"".join(text.ljust(length_N.max(), b"\0") for text in texts)
    return np.frombuffer(padded, np.uint8).reshape(len(texts), -1).copy(), length_N


def context_lines(
    layout_: LineLayout, world: SimulatedWorld, chunk: DrawnImpressions, key_CS: np.ndarray, rotation_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The chunk's lines of common_features (uint8), and where each ends (int64 [C])."""
    value_PC = np.stack([values_U[chunk.user_C] for values_U in world.profile.values()])
    value_PC = np.where(chunk.profile_PC, value_PC, -1)
    user_C = np.where(chunk.user_known_C, chunk.user_C, -1)
    value_FC = np.vstack([user_C, value_PC]).astype(np.int64)
    return _context_lines(layout_, chunk.shown, value_FC, key_CS, rotation_C)


def impression_lines(
    layout_: LineLayout,
    world: SimulatedWorld,
    chunk: DrawnImpressions,
    key_CS: np.ndarray,
    first_id: int,
    label_2B: np.ndarray,
    rotation_B: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The chunk's lines of sample_skeleton (uint8), and where each ends; `label_2B` is click and buy (uint8)."""
    first_G, size_G = world.tables.first_4G[2], world.tables.size_4G[2]
    return _impression_lines(
        layout_, chunk.shown, first_G, size_G, chunk.context_B, key_CS, first_id, label_2B, rotation_B
    )


@nb.njit(cache=True)
def _context_lines(layout_, shown, value_FC, key_CS, rotation_C):  # type: ignore[no-untyped-def]
    contexts = len(rotation_C)
    capacity = contexts * _LONGEST_HEAD + (shown.entry_end_C[-1] + value_FC.size) * _LONGEST_FEATURE
    text, ends_C, at = np.empty(capacity, np.uint8), np.empty(contexts, np.int64), 0
    begin = 0
    for context in range(contexts):
        end = shown.entry_end_C[context]
        features = end - begin
        for field in range(len(value_FC)):
            features += value_FC[field, context] >= 0
        at = _put(text, at, key_CS[context], 16)
        at = _put_number_and_comma(text, _comma(text, at), features)
        for step in range(_NUM_CONTEXT_FIELDS):
            field = (rotation_C[context] + step) % _NUM_CONTEXT_FIELDS
            if field < _FIRST_LIST:
                if value_FC[field, context] >= 0:
                    at = _put_feature(text, at, layout_, field, value_FC[field, context], -1)
                continue
            first = layout_.first_taxon_4[field - _FIRST_LIST]
            stop = first + layout_.block_4F[1, field]
            for entry in range(begin, end):
                taxon = shown.entry_taxon_E[entry]
                if first <= taxon < stop:
                    at = _put_feature(text, at, layout_, field, taxon - first, shown.entry_count_E[entry])
        at = _end_line(text, at, features)
        ends_C[context] = at
        begin = end
    return text[:at], ends_C


@nb.njit(cache=True)
def _impression_lines(  # type: ignore[no-untyped-def]
    layout_, shown, first_G, size_G, context_B, key_CS, first_id, label_2B, rotation_B
):
    impressions = len(rotation_B)
    most = _NUM_IMPRESSION_FIELDS * impressions + 2 * shown.num_intentions_B.sum()
    text = np.empty(impressions * _LONGEST_HEAD + most * _LONGEST_FEATURE, np.uint8)
    ends_B, at = np.empty(impressions, np.int64), 0
    for row in range(impressions):
        features = _num_features(shown, row)
        at = _put_number_and_comma(text, at, first_id + row)
        for label in range(2):
            text[at] = 48 + label_2B[label, row]
            at = _comma(text, at + 1)
        at = _put(text, at, key_CS[context_B[row]], 16)
        at = _put_number_and_comma(text, _comma(text, at), features)
        at = _put_impression(text, at, layout_, shown, first_G, size_G, rotation_B[row], row)
        at = _end_line(text, at, features)
        ends_B[row] = at
    return text[:at], ends_B


@nb.njit(cache=True)
def _num_features(shown, row):  # type: ignore[no-untyped-def]
    present, intentions = shown.present_B[row], shown.num_intentions_B[row]
    features = 0
    for bit in (ITEM, CATEGORY, SHOP, BRAND, POSITION_BIT):
        features += (present & bit) != 0
    if present & INTENTION:
        features += intentions
    if present & CROSS:
        for kind in range(3):
            features += shown.shared_3B[kind, row] > 0
        for which in range(intentions):
            features += shown.shared_intention_BL[row, which] > 0
    return features


@nb.njit(cache=True)
def _put_impression(text, at, layout_, shown, first_G, size_G, rotation, row):  # type: ignore[no-untyped-def]
    """Write the features of one impression: its item's own (0–3), what item and lists share (4–7), item id, position."""
    present = shown.present_B[row]
    category = shown.taxon_4B[0, row]
    first, size = first_G[category], size_G[category]
    for step in range(_NUM_IMPRESSION_FIELDS):
        field = (rotation + step) % _NUM_IMPRESSION_FIELDS
        if not present & _BIT_OF_FIELD[field]:
            continue
        kind, shared = field % 4, 4 <= field < _ITEM_ID
        values = shown.num_intentions_B[row] if kind == 3 and field < _ITEM_ID else 1
        for which in range(values):
            count = -1
            if field == _ITEM_ID:
                value = np.int64(shown.item_B[row])
            elif field == _POSITION:
                value = np.int64(shown.position_B[row])
            elif kind == 3:
                value = first + (shown.taxon_4B[3, row] - first + which) % size - layout_.first_taxon_4[3]
                count = shown.shared_intention_BL[row, which] if shared else -1
            else:
                value = np.int64(shown.taxon_4B[kind, row]) - layout_.first_taxon_4[kind]
                count = shown.shared_3B[kind, row] if shared else -1
            if count != 0:
                at = _put_feature(text, at, layout_, field, value, count)
    return at


@nb.njit(cache=True, inline="always")
def _put_feature(text, at, layout_, field, value, count):  # type: ignore[no-untyped-def]
    """Write one feature and the \\x01 after it; the weight is ln(1 + count), or 1.0 for a count of -1."""
    at = _put(text, at, layout_.tag_FS[field], layout_.tag_length_F[field])
    block_4F = layout_.block_4F
    number = block_4F[0, field] + (value * block_4F[2, field] + block_4F[3, field]) % block_4F[1, field]
    at = _put_number(text, at, number)
    text[at] = 3
    at += 1
    if count < 0:
        text[at], text[at + 1], text[at + 2] = 49, 46, 48  # 1.0
        at += 3
    else:
        at = _put(text, at, layout_.weight_NS[count], layout_.weight_length_N[count])
    text[at] = 1
    return at + 1


@nb.njit(cache=True)
def _put(text, at, short_S, length):  # type: ignore[no-untyped-def]
    for i in range(length):
        text[at + i] = short_S[i]
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
def keys(counter_C: np.ndarray, salt: np.uint64) -> np.ndarray:
    """Context keys: 16 hex digits, uint8 [C, 16]; different counters below 2⁶⁴ give different keys (a bijection)."""
    key_CS = np.empty((len(counter_C), 16), np.uint8)
    for context in range(len(counter_C)):
        x = np.uint64(counter_C[context]) ^ salt
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
        for place in range(16):
            nibble = np.uint8((x >> np.uint64(60 - 4 * place)) & np.uint64(15))
            key_CS[context, place] = nibble + (np.uint8(48) if nibble < 10 else np.uint8(87))
    return key_CS
