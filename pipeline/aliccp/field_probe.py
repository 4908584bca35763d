"""The probe tables in which the byte kernel looks up raw names of fields: all names by hash, and short names as words.

`names_of` makes both from the catalogue; `short_slot` and `find_field` are the look-ups, compiled into the kernel.
"""

# Shapes: F fields of a scope.

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.features.fields import Catalogue
from pipeline.kernels.hashing import GOLDEN
from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import WORD_BYTES, byte_at

_NO_NAME = np.uint64(2**64 - 1)
_SPREAD = np.uint64(GOLDEN)


class Names(NamedTuple):
    """The raw names of one scope's fields, in two tables: of all by hash, and of short ones as words of eight bytes."""

    slots: np.ndarray  # int64 [slots], position in the scope, -1 empty
    name_bytes: np.ndarray  # uint8 [F, bytes of the longest name]
    length_F: np.ndarray  # int64
    number_F: np.ndarray  # int64, position in the catalogue
    is_single_F: np.ndarray  # bool, single-valued
    # uint64 [slots, 2]: the name with its \x02 as a word, and its position in the scope, at `short_slot` of the word
    short_names: np.ndarray


def names_of(catalogue: Catalogue, scope: str) -> Names:
    """Make the probe tables of one scope."""
    entries = catalogue.read_fields(scope)
    raw = [entry.raw_id.encode() for entry in entries]
    width = max([len(name) for name in raw] + [1])
    name_bytes = np.zeros((len(raw), width), np.uint8)
    slots = np.full(1 << max(6, (4 * len(raw)).bit_length()), -1, np.int64)
    for i, name in enumerate(raw):
        name_bytes[i, : len(name)] = np.frombuffer(name, np.uint8)
        slot = _name_hash(name) & (len(slots) - 1)
        while slots[slot] >= 0:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = i
    number_F = np.array([catalogue.fields.index(entry) for entry in entries], np.int64)
    is_single_F = np.array([entry.arity == "one" for entry in entries], np.bool_)
    return Names(
        slots, name_bytes, np.array([len(name) for name in raw], np.int64), number_F, is_single_F, _short_names(raw)
    )


def _short_names(raw: Sequence[bytes]) -> np.ndarray:
    """Make `Names.short_names` of names of up to 7 bytes. Of two names with one slot, only the first is in it."""
    short_names = np.full((1 << max(8, (16 * len(raw)).bit_length()), 2), _NO_NAME, np.uint64)
    for position, name in enumerate(raw):
        word = np.uint64(int.from_bytes(name + b"\x02", "little")) if len(name) < WORD_BYTES else _NO_NAME
        with np.errstate(over="ignore"):
            slot = int(short_slot.py_func(word, len(short_names)))
        if short_names[slot, 0] == _NO_NAME:
            short_names[slot] = word, position
    return short_names


def _name_hash(name: Sequence[int]) -> int:
    hashed = 0
    for byte in name:
        hashed = hashed * 31 + byte
    return hashed


@nb.njit(cache=True, inline="always")
def short_slot(name, num_slots):  # type: ignore[no-untyped-def]
    """Find where in `Names.short_names` a name stands that is one word with its \\x02."""
    return np.int64((name * _SPREAD) >> np.uint64(32)) & (num_slots - 1)


@nb.njit(cache=True)
def find_field(text, name, length, hashed, slots, name_bytes, length_F):  # type: ignore[no-untyped-def]
    """Return the position in the scope of the field with this name, or -1."""
    probe = hashed & (len(slots) - 1)
    while True:
        field = slots[probe]
        if field < 0:
            return -1
        if length_F[field] == length:
            is_same = True
            for i in range(length):
                is_same &= name_bytes[field, i] == byte_at(text, name + i)
            if is_same:
                return field
        probe = (probe + 1) & (len(slots) - 1)
