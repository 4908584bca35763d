"""The raw names of fields, as the byte kernel finds them: a table of all by hash, and one of short names as words.

`names_of` makes both from the catalogue; `short_slot` and `find` are the look-ups, compiled into the kernel.
"""

# Shapes: F fields of a scope, N bytes of the longest name, S slots.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.features.fields import Catalogue
from pipeline.kernels.hashing import GOLDEN
from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import WORD_BYTES, byte_at

_NO_NAME = np.uint64(2**64 - 1)
_SPREAD = np.uint64(GOLDEN)


@dataclass(frozen=True)
class Names:
    """The raw names of one scope's fields, in two tables: of all by hash, and of short ones as words of eight bytes."""

    slot_S: np.ndarray  # int64, position in the scope, -1 empty
    bytes_FN: np.ndarray  # uint8
    length_F: np.ndarray  # int64
    number_F: np.ndarray  # int64, position in the catalogue
    is_one_F: np.ndarray  # bool: arity one
    short_S2: (
        np.ndarray
    )  # uint64: the name with its \x02 as a word and its position in the scope, at `short_slot` of the word


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
    return Names(
        slot_S, bytes_FN, np.array([len(name) for name in raw], np.int64), number_F, is_one_F, _short_names(raw)
    )


def _short_names(raw: Sequence[bytes]) -> np.ndarray:
    """`Names.short_S2`: names of up to 7 bytes. Where two want one slot the second is left out, and read the longer way."""
    short_S2 = np.full((1 << max(8, (16 * len(raw)).bit_length()), 2), _NO_NAME, np.uint64)
    for position, name in enumerate(raw):
        word = np.uint64(int.from_bytes(name + b"\x02", "little")) if len(name) < WORD_BYTES else _NO_NAME
        with np.errstate(over="ignore"):
            slot = int(short_slot.py_func(word, len(short_S2)))
        if short_S2[slot, 0] == _NO_NAME:
            short_S2[slot] = word, position
    return short_S2


def _name_hash(name: Sequence[int]) -> int:
    hashed = 0
    for byte in name:
        hashed = hashed * 31 + byte
    return hashed


@nb.njit(cache=True, inline="always")
def short_slot(name, slots):  # type: ignore[no-untyped-def]
    """Find where in `Names.short_S2` a name stands that is one word with its \\x02."""
    return np.int64((name * _SPREAD) >> np.uint64(32)) & (slots - 1)


@nb.njit(cache=True)
def find(text, name, length, hashed, slot_S, bytes_FN, length_F):  # type: ignore[no-untyped-def]
    """The field of the scope with this name, or -1."""
    probe = hashed & (len(slot_S) - 1)
    while True:
        field = slot_S[probe]
        if field < 0:
            return -1
        if length_F[field] == length:
            same = True
            for i in range(length):
                same &= bytes_FN[field, i] == byte_at(text, name + i)
            if same:
                return field
        probe = (probe + 1) & (len(slot_S) - 1)
