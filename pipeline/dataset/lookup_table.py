"""Raw id → index: the lookup tables of all fields, as four .npy files that the workers of a host map into memory and share.

A field whose largest id is at most 8 times its distinct ids gets a direct table (index by id: one load), any other an
open-addressing hash. All fields lie one behind the other; `places` says where. A hashed field needs no table.
"""

# Shapes: F fields of the catalogue, D words of the direct tables, S slots of the hash tables.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.dataset.manifest import NUM_RESERVED_ROWS, OUT_OF_VOCABULARY
from pipeline.kernels.hashing import mix
from pipeline.kernels.jit import nb

DIRECT_FACTOR = 8
_EMPTY = -1  # no raw id is negative
#: Columns of places; MASK is the number of slots less one, or DIRECT for a direct table, or HASHED for SIZE buckets.
BEGIN, SIZE, MASK = range(3)
DIRECT, HASHED = -1, -2
_PARTS = ("places", "direct", "keys", "indices")


class IndexedIds(Protocol):
    """The ids of one field in the order of their index: id_N[i] has index i + 2, unless the field is hashed."""

    @property
    def id_N(self) -> np.ndarray: ...
    @property
    def hash_buckets(self) -> int: ...
    @property
    def num_rows(self) -> int: ...


@dataclass(frozen=True)
class Lookup:
    """The tables of every field."""

    places: np.ndarray  # int64: BEGIN and SIZE in direct or slots, MASK
    direct: np.ndarray  # int32
    keys: np.ndarray  # int64
    indices: np.ndarray  # int32

    def save(self, directory: Path, name: str = "lookup") -> list[Path]:
        """Write the four files; `name` tells several lookups of a job apart."""
        paths = []
        for part in _PARTS:
            paths.append(directory / f"{name}_{part}.npy")
            np.save(paths[-1], getattr(self, part))
        return paths

    @classmethod
    def load(cls, directory: Path, name: str = "lookup") -> "Lookup":
        """Map the four files of `name` into memory."""
        return cls(*(np.asarray(np.load(directory / f"{name}_{part}.npy", mmap_mode="r")) for part in _PARTS))

    def indices_of(self, field_V: np.ndarray, id_V: np.ndarray) -> np.ndarray:
        """Look up int32 [V], the index of each raw id in its field; OUT_OF_VOCABULARY where it has none, and is not hashed."""
        index_V = np.empty(len(id_V), np.int32)
        _look_up(field_V, id_V, self.places, self.direct, self.keys, self.indices, index_V)
        return index_V


def lookup_of(vocabularies: Sequence[IndexedIds]) -> Lookup:
    """Build the tables of `vocabularies`, one a field in catalogue order."""
    places = np.zeros((len(vocabularies), 3), np.int64)
    direct, keys, indices = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    num_direct = num_slots = 0
    for field, vocabulary in enumerate(vocabularies):
        id_N = vocabulary.id_N
        largest = int(id_N.max()) if len(id_N) else -1
        if vocabulary.hash_buckets:
            places[field] = 0, vocabulary.hash_buckets, HASHED
        elif largest < DIRECT_FACTOR * len(id_N) or not len(id_N):
            places[field] = num_direct, largest + 1, DIRECT
            direct.append(np.full(largest + 1, OUT_OF_VOCABULARY, np.int32))
            direct[-1][id_N] = np.arange(NUM_RESERVED_ROWS, vocabulary.num_rows)
            num_direct += largest + 1
        else:
            slots = 1 << (2 * len(id_N)).bit_length()
            places[field] = num_slots, slots, slots - 1
            keys.append(np.full(slots, _EMPTY, np.int64))
            indices.append(np.zeros(slots, np.int32))
            _insert(id_N, keys[-1], indices[-1])
            num_slots += slots
    # mmap refuses an empty file, hence one word behind the end of each.
    return Lookup(
        places,
        np.concatenate([*direct, np.zeros(1, np.int32)]),
        np.concatenate([*keys, np.zeros(1, np.int64)]),
        np.concatenate([*indices, np.zeros(1, np.int32)]),
    )


@nb.njit(cache=True)
def _insert(id_N, keys, indices):  # type: ignore[no-untyped-def]
    for i in range(len(id_N)):
        slot = np.int64(mix(np.uint64(id_N[i])) & np.uint64(len(keys) - 1))
        while keys[slot] != _EMPTY:
            slot = (slot + 1) & (len(keys) - 1)
        keys[slot] = id_N[i]
        indices[slot] = i + NUM_RESERVED_ROWS


@nb.njit(cache=True)
def _look_up(field_V, id_V, places, direct, keys, indices, index_V):  # type: ignore[no-untyped-def]
    # One loop without a call: numba would count references to all tables for every value, 56 of then 63 ns.
    for v in range(len(id_V)):
        begin, mask = places[field_V[v], BEGIN], places[field_V[v], MASK]
        raw_id = id_V[v]
        index = np.int32(OUT_OF_VOCABULARY)
        if mask == HASHED:
            index = np.int32(np.int64(mix(np.uint64(raw_id)) % np.uint64(places[field_V[v], SIZE])) + NUM_RESERVED_ROWS)
        elif mask < 0:
            if raw_id < places[field_V[v], SIZE]:
                index = direct[begin + raw_id]
        else:
            slot = np.int64(mix(np.uint64(raw_id)) & np.uint64(mask))
            while keys[begin + slot] != raw_id and keys[begin + slot] != _EMPTY:
                slot = (slot + 1) & mask
            if keys[begin + slot] == raw_id:
                index = indices[begin + slot]
        index_V[v] = index
