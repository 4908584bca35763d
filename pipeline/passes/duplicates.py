"""Duplicates across contexts, for checks.duplicates=global: impression ids that stand in several contexts of a period.

    first pass    good impressions (id, position, context key), good contexts (key) ─Occurrences─▶ partitions by hash
    merge         occurrences of one partition ─ids_in_several_contexts()─▶ the driver
    driver        of those whose context line is there, all but the first ─Repeats.of()─▶ positions
    second pass   the lines at these positions ─reject_repeats()─▶ reason duplicate_impression

                  id   context   position in the log
                   7      A      10                       kept: the first
                   7      A      30                       kept here; grouping finds it within its context
                   7      B      20                       rejected here
                   8      B      40                       kept: one context only

Grouping finds an id that repeats within its context, with either setting (contexts/group.py). Train and test files
number their impressions separately, so ids are compared within a period. A line that is rejected for another reason, a
missing context included, does not make a later good line a repeat.
"""

# Shapes: L lines of a chunk, N occurrences, X repeated impressions.

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.tally import GRAIN, Tally
from pipeline.chunks import line_columns, reasons
from pipeline.chunks.chunk import Chunk
from pipeline.chunks.reasons import DUPLICATE_IMPRESSION, REASONS
from pipeline.chunks.sources import PERIODS, SKELETON, SourceFile
from pipeline.kernels.hashing import order_hashes, scale_hashes, splits_of

#: A line's position in the order of the log: the ordinal of its file above, its byte offset below.
OFFSET_BITS = 44
BYTES_PER_PART = 256 << 20  # of impression lines, whose occurrences one task sorts
_MOST_PARTS = 1024
_POSITIONS_FILE = "duplicates.npy"
_PARTITION_SALT = 0
#: The (table, period) of a line.
KINDS = tuple(product(GRAIN, PERIODS))


@dataclass(frozen=True)
class Partitions:
    """The partitions of the first pass that occurrences are shuffled to: as many for each of KINDS."""

    keys: tuple[int, ...]  # see spark.hashes.partition_keys

    @property
    def for_each(self) -> int:
        """How many partitions a kind has."""
        return len(self.keys) // len(KINDS)

    def kind_of(self, key: int) -> tuple[str, str]:
        """Return (table, period) of what goes to the partition with this key."""
        return KINDS[self.keys.index(key) // self.for_each]


def num_partitions(sources: Iterable[SourceFile]) -> int:
    """Return how many partitions the occurrences of these files need."""
    num_bytes = sum(source.bytes for source in sources if source.table == SKELETON)
    return len(KINDS) * min(_MOST_PARTS, -(-num_bytes // BYTES_PER_PART))


class Occurrences:
    """The occurrences that a task has not flushed yet: int64 [N, 3] (id, position, key), of contexts [N, 1] (key)."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        self._waiting: list[list[np.ndarray]] = [[] for _ in KINDS]
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def add(self, chunk: Chunk) -> None:
        """Add the good lines of a chunk."""
        line_table = chunk.parsed.line_table
        line_table = line_table[line_table[:, line_columns.REASON] == reasons.GOOD]
        if chunk.source.table == SKELETON:
            columns = [
                line_table[:, line_columns.SAMPLE_ID],
                _positions(chunk, line_table),
                line_table[:, line_columns.KEY],
            ]
            found = np.stack(columns, axis=1)
        else:
            found = line_table[:, [line_columns.KEY]]
        self._waiting[KINDS.index((chunk.source.table, chunk.source.period))].append(found)
        self._num += len(found)

    def flush(self) -> Iterator[tuple[int, bytes]]:
        """Yield (partition key, its occurrences as bytes) of every partition that has any, and forget them."""
        for_each = self._partitions.for_each
        for kind, waiting in enumerate(self._waiting):
            if not waiting:
                continue
            found = np.concatenate(waiting)
            part_N = scale_hashes(order_hashes(np.ascontiguousarray(found[:, 0]), _PARTITION_SALT), for_each)
            order_N = np.argsort(part_N, kind="stable")
            bounds = np.searchsorted(part_N[order_N], np.arange(for_each + 1))
            for part in range(for_each):
                chosen = order_N[bounds[part] : bounds[part + 1]]
                if len(chosen):
                    yield self._partitions.keys[kind * for_each + part], found[chosen].tobytes()
            waiting.clear()
        self._num = 0


def ids_in_several_contexts(table: str, blobs: Sequence[Any]) -> bytes:
    """Return the occurrences of impression ids seen in more than one context; for context lines, their distinct keys.

    `blobs` are all occurrences of one partition.
    """
    found = _concatenated(table, blobs)
    if table != SKELETON:
        return np.unique(found).tobytes()
    found = found[np.argsort(found[:, 0], kind="stable")]
    is_first_N = np.r_[True, found[1:, 0] != found[:-1, 0]] if len(found) else np.empty(0, np.bool_)
    first = np.flatnonzero(is_first_N)  # where the occurrences of each id begin
    if not len(first):
        return b""
    in_several = np.minimum.reduceat(found[:, 2], first) < np.maximum.reduceat(found[:, 2], first)
    return found[np.repeat(in_several, np.diff(np.r_[first, len(found)]))].tobytes()


@dataclass(frozen=True)
class Repeats:
    """The impressions that repeat an id of another context, in the order of the log."""

    position_X: np.ndarray  # int64, rising
    split_X: np.ndarray  # positions in manifest.SPLITS

    @classmethod
    def of(cls, blobs: Iterable[tuple[tuple[str, str], Any]], validation: float, seed: int) -> "Repeats":
        """Gather what `ids_in_several_contexts` returned for every partition, as ((table, period), blob)."""
        by_kind: dict[tuple[str, str], list[Any]] = {kind: [] for kind in KINDS}
        for kind, blob in blobs:
            by_kind[kind].append(blob)
        positions, splits = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for period in PERIODS:
            contexts, impressions = (_concatenated(table, by_kind[table, period]) for table in GRAIN)
            repeated = _outside_first_context(impressions[np.isin(impressions[:, 2], contexts[:, 0])])
            positions.append(repeated[:, 1])
            splits.append(splits_of(repeated[:, 2], period == "test", validation, seed))
        position_X = np.concatenate(positions)
        order_X = np.argsort(position_X)
        return cls(position_X[order_X], np.concatenate(splits)[order_X])

    def recount(self, tally: Tally) -> None:
        """Count these lines as rejected; the first pass has counted them as good."""
        grain, reason = GRAIN[SKELETON], REASONS[DUPLICATE_IMPRESSION]
        for split, number in enumerate(np.bincount(self.split_X).tolist()):
            tally.add(split, grain, "good", -number)
            tally.add(split, grain, reason, number)
        if len(self.position_X):
            first = int(self.position_X[0])
            tally.note_first(reason, first >> OFFSET_BITS, first & ((1 << OFFSET_BITS) - 1))

    def save(self, directory: Path) -> list[Path]:
        """Write the positions where `load_positions` finds them; return the files written."""
        if not len(self.position_X):
            return []  # an empty file cannot be mapped
        np.save(directory / _POSITIONS_FILE, self.position_X)
        return [directory / _POSITIONS_FILE]


def load_positions(directory: Path) -> np.ndarray:
    """Map the positions that Repeats.save left in `directory`; none if it left none."""
    path = directory / _POSITIONS_FILE
    return np.asarray(np.load(path, mmap_mode="r")) if path.exists() else np.empty(0, np.int64)


def reject_repeats(chunk: Chunk, position_X: np.ndarray) -> None:
    """Give the lines of a chunk that stand at one of `position_X` the reason duplicate_impression."""
    if chunk.source.table != SKELETON or not len(position_X):
        return
    position_L = _positions(chunk, chunk.parsed.line_table)
    begin, end = np.searchsorted(position_X, [position_L[0], position_L[-1] + 1])
    rejected = np.searchsorted(position_L, position_X[begin:end])
    chunk.parsed.line_table[rejected, line_columns.REASON] = DUPLICATE_IMPRESSION


def _outside_first_context(found: np.ndarray) -> np.ndarray:
    """Return the occurrences [N, 3] of each id that stand in another context than its first."""
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    is_first_N = np.r_[True, found[1:, 0] != found[:-1, 0]][: len(found)]
    owner_N = found[is_first_N, 2][np.cumsum(is_first_N) - 1]
    return found[found[:, 2] != owner_N]


def _concatenated(table: str, blobs: Sequence[Any]) -> np.ndarray:
    columns = 3 if table == SKELETON else 1
    found = [np.frombuffer(blob, np.int64).reshape(-1, columns) for blob in blobs]
    return np.concatenate([np.empty((0, columns), np.int64), *found])


def _positions(chunk: Chunk, line_table: np.ndarray) -> np.ndarray:
    return (chunk.source.ordinal << OFFSET_BITS) + chunk.offset + line_table[:, line_columns.START]
