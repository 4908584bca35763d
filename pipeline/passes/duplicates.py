"""Duplicates across contexts, for checks.duplicates=global: impression ids that stand in several contexts of a period.

    first pass    (id, place, key) of good impressions, keys of good contexts ─Sightings─▶ partitions by hash
    merge         ids of one partition that stand in several contexts ─shared()─▶ the driver
    driver        of those whose context is there, the first in the order of the log stays ─Repeats.of()─▶ places
    second pass   mark() gives the lines at these places their reason

An id that repeats within its context is found by grouping (contexts.py), whatever the setting. Train and test files
number their impressions each for themselves, so ids are compared within a period. A line that is set aside for
another reason, a missing context included, does not take the id away from a later good one.
"""

# Shapes: L lines of a chunk, N sightings, X lines to set aside.

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.tally import GRAIN, Tally
from pipeline.chunks import line_columns, reasons
from pipeline.chunks.chunk import Chunk
from pipeline.chunks.reasons import DUPLICATE_IMPRESSION, REASONS
from pipeline.chunks.sources import PERIODS, SKELETON, SourceFile
from pipeline.kernels.hashing import order_hashes, scaled, splits_of

#: A place is a line's position in the order of the log: the ordinal of its file above, the byte offset below.
OFFSET_BITS = 44
BYTES_PER_PART = 256 << 20  # of impression lines, whose sightings one task sorts
_MOST_PARTS = 1024
_FILE = "duplicates.npy"
_SALT = 0
#: What is sighted: the (table, period) of a line.
KINDS = tuple((table, period) for table in GRAIN for period in PERIODS)


@dataclass(frozen=True)
class Partitions:
    """The partitions of the first pass that sightings go to: as many for each of KINDS."""

    keys: tuple[int, ...]  # see buckets.partition_keys

    @property
    def for_each(self) -> int:
        """How many partitions a kind has."""
        return len(self.keys) // len(KINDS)

    def kind_of(self, key: int) -> tuple[str, str]:
        """(table, period) of what goes to the partition with this key."""
        return KINDS[self.keys.index(key) // self.for_each]


def num_partitions(sources: Iterable[SourceFile]) -> int:
    """How many partitions the sightings of these files need."""
    num_bytes = sum(source.bytes for source in sources if source.table == SKELETON)
    return len(KINDS) * min(_MOST_PARTS, -(-num_bytes // BYTES_PER_PART))


class Sightings:
    """What a task has seen and not yet handed on: int64 [N, 3] of impressions (id, place, key), [N, 1] of contexts (key)."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        self._held: list[list[np.ndarray]] = [[] for _ in KINDS]
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def add(self, chunk: Chunk) -> None:
        """The good lines of a chunk."""
        line_LC = chunk.parsed.line_LC
        line_LC = line_LC[line_LC[:, line_columns.REASON] == reasons.GOOD]
        if chunk.source.table == SKELETON:
            seen = np.stack(
                [line_LC[:, line_columns.SAMPLE_ID], _places(chunk, line_LC), line_LC[:, line_columns.KEY]], axis=1
            )
        else:
            seen = line_LC[:, [line_columns.KEY]]
        self._held[KINDS.index((chunk.source.table, chunk.source.period))].append(seen)
        self._num += len(seen)

    def handed_on(self) -> Iterator[tuple[int, bytes]]:
        """(partition key, its sightings as bytes) of every partition that has any; none is held any more."""
        for_each = self._partitions.for_each
        for kind, held in enumerate(self._held):
            if not held:
                continue
            seen = np.concatenate(held)
            part_N = scaled(order_hashes(np.ascontiguousarray(seen[:, 0]), _SALT), for_each)
            order = np.argsort(part_N, kind="stable")
            bounds = np.searchsorted(part_N[order], np.arange(for_each + 1))
            for part in range(for_each):
                chosen = order[bounds[part] : bounds[part + 1]]
                if len(chosen):
                    yield self._partitions.keys[kind * for_each + part], seen[chosen].tobytes()
            held.clear()
        self._num = 0


def shared(table: str, blobs: Sequence[Any]) -> bytes:
    """What the driver needs of a partition: sightings of ids that stand in several contexts; the contexts' keys."""
    seen = _joined(table, blobs)
    if table != SKELETON:
        return np.unique(seen).tobytes()
    seen = seen[np.argsort(seen[:, 0], kind="stable")]
    is_first = np.r_[True, seen[1:, 0] != seen[:-1, 0]] if len(seen) else np.empty(0, np.bool_)
    first_G = np.flatnonzero(is_first)
    if not len(first_G):
        return b""
    several_G = np.minimum.reduceat(seen[:, 2], first_G) < np.maximum.reduceat(seen[:, 2], first_G)
    return seen[np.repeat(several_G, np.diff(np.r_[first_G, len(seen)]))].tobytes()


@dataclass(frozen=True)
class Repeats:
    """The impressions that repeat an id of another context, in the order of the log."""

    place_X: np.ndarray  # int64, rising
    split_X: np.ndarray  # positions in manifest.SPLITS

    @classmethod
    def of(cls, blobs: Iterable[tuple[tuple[str, str], Any]], validation: float, seed: int) -> "Repeats":
        """From what `shared` made of every partition, as ((table, period), blob)."""
        held: dict[tuple[str, str], list[Any]] = {kind: [] for kind in KINDS}
        for kind, blob in blobs:
            held[kind].append(blob)
        places, splits = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for period in PERIODS:
            context, skeleton = (_joined(table, held[table, period]) for table in GRAIN)
            repeated = _but_the_first(skeleton[np.isin(skeleton[:, 2], context[:, 0])])
            places.append(repeated[:, 1])
            splits.append(splits_of(repeated[:, 2], period == "test", validation, seed))
        place_X = np.concatenate(places)
        order = np.argsort(place_X)
        return cls(place_X[order], np.concatenate(splits)[order])

    def move(self, tally: Tally) -> None:
        """Count the lines as set aside, which the first pass has counted as good."""
        grain, reason = GRAIN[SKELETON], REASONS[DUPLICATE_IMPRESSION]
        for split, number in enumerate(np.bincount(self.split_X).tolist()):
            tally.add(split, grain, "good", -number)
            tally.add(split, grain, reason, number)
        if len(self.place_X):
            first = int(self.place_X[0])
            tally.note_first(reason, first >> OFFSET_BITS, first & ((1 << OFFSET_BITS) - 1))

    def save(self, directory: Path) -> list[Path]:
        """Leave the places where `load` finds them; the files written."""
        if not len(self.place_X):
            return []  # an empty file cannot be mapped
        np.save(directory / _FILE, self.place_X)
        return [directory / _FILE]


def load(directory: Path) -> np.ndarray:
    """The places that Repeats.save left in `directory`, mapped; none if it left none."""
    path = directory / _FILE
    return np.asarray(np.load(path, mmap_mode="r")) if path.exists() else np.empty(0, np.int64)


def mark(chunk: Chunk, place_X: np.ndarray) -> None:
    """Give the lines of a chunk that stand at one of `place_X` the reason duplicate_impression."""
    if chunk.source.table != SKELETON or not len(place_X):
        return
    place_L = _places(chunk, chunk.parsed.line_LC)
    begin, end = np.searchsorted(place_X, [place_L[0], place_L[-1] + 1])
    chunk.parsed.line_LC[np.searchsorted(place_L, place_X[begin:end]), line_columns.REASON] = DUPLICATE_IMPRESSION


def _but_the_first(seen_N3: np.ndarray) -> np.ndarray:
    """The sightings of each id that stand in another context than its first."""
    seen_N3 = seen_N3[np.lexsort((seen_N3[:, 1], seen_N3[:, 0]))]
    is_first = np.r_[True, seen_N3[1:, 0] != seen_N3[:-1, 0]][: len(seen_N3)]
    owner_N = seen_N3[is_first, 2][np.cumsum(is_first) - 1]
    return seen_N3[seen_N3[:, 2] != owner_N]


def _joined(table: str, blobs: Sequence[Any]) -> np.ndarray:
    columns = 3 if table == SKELETON else 1
    seen = [np.frombuffer(blob, np.int64).reshape(-1, columns) for blob in blobs]
    return np.concatenate([np.empty((0, columns), np.int64), *seen])


def _places(chunk: Chunk, line_LC: np.ndarray) -> np.ndarray:
    return (chunk.source.ordinal << OFFSET_BITS) + chunk.offset + line_LC[:, line_columns.START]
