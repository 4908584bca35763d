"""Vocabulary: raw id → index. Counted in each task, merged by hash partitions, cut at the minimum count, looked up.

    chunk ─count─▶ Counter of the task ─parts()─▶ blobs by hash ─merge()─▶ one Counter per partition ─▶ ids of a field

Index 0 is missing, 1 out of vocabulary; the ids follow by falling count, ties by raw id.
"""

# Shapes: V values, F fields of the catalogue, N ids of a field. A pair is a distinct id of a field with its count.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.manifest import NUM_RESERVED_ROWS
from pipeline.features.fields import Field
from pipeline.kernels.hashing import GOLDEN, mix
from pipeline.kernels.jit import nb

_COUNT_SHIFT = 16  # a slot's second word: count above, field number below
_FIELD_MASK = (1 << _COUNT_SHIFT) - 1
_FIELD_SALT = np.uint64(GOLDEN)


class Counter:
    """A count for each (field, id), in one open-addressing table of two words a slot: the id, and count · 2^16 + field."""

    def __init__(self) -> None:
        self._table = np.zeros((1 << 12, 2), np.int64)
        self._num_pairs = 0

    def __len__(self) -> int:
        return self._num_pairs

    def add(self, field_V: np.ndarray, id_V: np.ndarray, chosen_V: np.ndarray) -> None:
        """Count each chosen value once."""
        self._reserve(int(np.count_nonzero(chosen_V)))
        self._num_pairs += _count_values(self._table, field_V, id_V, chosen_V)

    def add_pairs(self, pairs: np.ndarray) -> None:
        """Add the counts of another counter's pairs."""
        self._reserve(len(pairs))
        self._num_pairs += _count_pairs(self._table, pairs)

    def pairs(self) -> np.ndarray:
        """Return int64 [pairs, 2]: id, count · 2^16 + field; in no particular order."""
        return self._table[self._table[:, 1] > 0]

    def parts(self, num_parts: int) -> Iterator[tuple[int, bytes]]:
        """Yield (partition, its pairs as bytes) for every partition that has any."""
        pairs = self.pairs()
        part_of_pair = _partitions_of(pairs, num_parts)
        order = np.argsort(part_of_pair, kind="stable")
        bounds = np.searchsorted(part_of_pair[order], np.arange(num_parts + 1))
        for part in range(num_parts):
            chosen = order[bounds[part] : bounds[part + 1]]
            if len(chosen):
                yield part, pairs[chosen].tobytes()

    def _reserve(self, more: int) -> None:
        """Keep at least half of the slots empty, or probing gets long."""
        slots = len(self._table)
        while 2 * (self._num_pairs + more) > slots:
            slots *= 2
        if slots > len(self._table):
            pairs = self.pairs()
            self._table = np.zeros((slots, 2), np.int64)
            _count_pairs(self._table, pairs)


def pairs_of(blob: Any) -> np.ndarray:
    """View a blob as int64 [pairs, 2], aligned: numba would compile another kernel for memory that is not."""
    return np.require(np.frombuffer(blob, np.int64).reshape(-1, 2), requirements="A")


def fields_of(pairs: np.ndarray) -> np.ndarray:
    """Return int64 [pairs]: the number of each pair's field."""
    return pairs[:, 1] & _FIELD_MASK


def keep_frequent(pairs: np.ndarray, fields: Sequence[Field]) -> np.ndarray:
    """Keep the pairs whose count reaches their field's minimum, and of these no more than the field may have ids."""
    least_F = np.array([entry.min_count for entry in fields])
    pairs = pairs[pairs[:, 1] >> _COUNT_SHIFT >= least_F[fields_of(pairs)]]
    if all(entry.max_ids is None for entry in fields):
        return pairs
    chosen = [ids[: entry.max_ids] for ids, entry in zip(_rank(pairs, len(fields)), fields, strict=True)]
    return pairs[np.concatenate(chosen)]


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one field in index order: id_N[i] has index i + 2."""

    id_N: np.ndarray
    count_N: np.ndarray
    texts: tuple[str | None, ...] = ()  # of each id that is the hash of a text; empty where none is
    hash_buckets: int = 0  # not 0: there are no ids here, index = 2 + mix(raw id) mod hash_buckets
    #: With vocabulary.max_age_days: the end of the latest train split that had each id, in ms since 1970 UTC
    last_seen_N: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table."""
        return (self.hash_buckets or len(self.id_N)) + NUM_RESERVED_ROWS

    def table(self) -> pa.Table:
        """Return the content of vocabulary/<field>-<xxh3>.parquet."""
        index = np.arange(NUM_RESERVED_ROWS, self.num_rows, dtype=np.int32)
        columns = {"raw_id": self.id_N, "index": index, "count": self.count_N}
        columns |= {"text": pa.array(self.texts, pa.string())} if self.texts else {}
        return pa.table(columns | ({"last_seen": self.last_seen_N} if self.last_seen_N is not None else {}))


def vocabularies(pairs: np.ndarray, fields: Sequence[Field]) -> list[Vocabulary]:
    """Build the vocabulary of each field of the catalogue, from the frequent pairs in any order."""
    found = []
    for ids, entry in zip(_rank(pairs, len(fields)), fields, strict=True):
        kept = ids[: entry.max_ids]
        found.append(Vocabulary(pairs[kept, 0], pairs[kept, 1] >> _COUNT_SHIFT, hash_buckets=entry.hash_buckets))
    return found


def _rank(pairs: np.ndarray, num_fields: int) -> list[np.ndarray]:
    """Return the positions of the pairs of each field, by falling count, ties by raw id."""
    fields, counts = fields_of(pairs), pairs[:, 1] >> _COUNT_SHIFT
    order = np.lexsort((pairs[:, 0], -counts, fields))
    bounds = np.searchsorted(fields[order], np.arange(num_fields + 1))
    return [order[begin:end] for begin, end in pairwise(bounds)]


def write_vocabulary(vocabulary: Vocabulary, sink: Any) -> None:
    """Write the Parquet bytes of one vocabulary to a file object, and close it."""
    with pa.PythonFile(sink, "w") as stream:
        pq.write_table(vocabulary.table(), stream, compression="zstd", compression_level=1, use_dictionary=False)


@nb.njit(cache=True, inline="always")
def _home(raw_id, field, slots):  # type: ignore[no-untyped-def]
    hashed = mix(np.uint64(raw_id) ^ (np.uint64(field) * _FIELD_SALT))
    return np.int64(hashed & np.uint64(slots - 1))


@nb.njit(cache=True, inline="always")
def _slot_of(table, raw_id, field):  # type: ignore[no-untyped-def]
    """Return the slot that holds the pair, or the empty slot where it belongs."""
    slots = len(table)
    slot = _home(raw_id, field, slots)
    while table[slot, 1] != 0 and (table[slot, 0] != raw_id or (table[slot, 1] & _FIELD_MASK) != field):
        slot = (slot + 1) & (slots - 1)
    return slot


@nb.njit(cache=True)
def _count_values(table, field_V, id_V, chosen_V):  # type: ignore[no-untyped-def]
    num_new = 0
    for i in range(len(id_V)):
        if not chosen_V[i]:
            continue
        field = np.int64(field_V[i])
        slot = _slot_of(table, id_V[i], field)
        if table[slot, 1] == 0:
            table[slot, 0] = id_V[i]
            table[slot, 1] = field
            num_new += 1
        table[slot, 1] += 1 << _COUNT_SHIFT
    return num_new


@nb.njit(cache=True)
def _count_pairs(table, pairs):  # type: ignore[no-untyped-def]
    num_new = 0
    for i in range(len(pairs)):
        field = pairs[i, 1] & _FIELD_MASK
        slot = _slot_of(table, pairs[i, 0], field)
        if table[slot, 1] == 0:
            table[slot, 0] = pairs[i, 0]
            table[slot, 1] = field
            num_new += 1
        table[slot, 1] += pairs[i, 1] - field
    return num_new


@nb.njit(cache=True)
def _partitions_of(pairs, num_parts):  # type: ignore[no-untyped-def]
    part_of_pair = np.empty(len(pairs), np.int64)
    for i in range(len(pairs)):
        # The upper half: the lower bits choose the slot, and a part must not fill one corner of the merged table.
        hashed = mix(np.uint64(pairs[i, 0]) ^ (np.uint64(pairs[i, 1] & _FIELD_MASK) * _FIELD_SALT))
        part_of_pair[i] = np.int64(((hashed >> np.uint64(32)) * np.uint64(num_parts)) >> np.uint64(32))
    return part_of_pair
