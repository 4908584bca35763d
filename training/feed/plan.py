"""The plan: which rank reads which row group at which step. Pure arithmetic over the manifest, no I/O (DESIGN §6).

The row groups of a split, in an order shuffled by (seed, epoch), form one sequence of N units. Lane l of L serves
[lN/L, (l+1)N/L) of it. Each step takes B/L units of every lane, where B is the global batch; only the last step is
short. Rank r of W serves the lanes l with l mod W = r. L does not change with the number of ranks, so neither does the
global batch of a step (elastic determinism), and mid-epoch resumption is a computation. A unit is an impression, a
clicked impression for models that train on clicks, or a sample (training.feed.sampling): an impression, as often as it is
drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.dataset.manifest import DatasetFile, RowGroup
from pipeline.errors import InputError

#: What an epoch and a batch may count.
UNITS = ("impressions", "clicks", "samples")
#: Expected samples are whole numbers of this fraction, so that their sums are exact: 2^-24 of a sample.
SAMPLE_BITS = 24
_Sums = TypeVar("_Sums", int, np.ndarray)
#: Separates the random stream of the row groups' order from those of the rows inside each.
_ORDER_OF_GROUPS = 2**64 - 1


@dataclass
class PlanSettings:
    """The configuration group `plan`."""

    batch_size: int = 5000  # impressions (or clicks or samples, by model.train_on) a step, over all ranks
    lanes: int = 8  # every number of ranks that divides it trains on the same batches
    seed: int = 1  # of the order of the data
    share: float = (
        1.0  # of an epoch's order that is read: 0.1 trains on a random tenth, the same for every number of ranks
    )

    def __post_init__(self) -> None:
        check_batch(self.batch_size, self.lanes)
        if self.seed < 0:
            raise InputError(f"plan.seed={self.seed} is negative; choose 0 or more.")
        if not 0 < self.share <= 1:  # also NaN
            raise InputError(
                f"plan.share={self.share} is not above 0 and at most 1; 1 reads the whole split in an epoch."
            )


class Draw(NamedTuple):
    """The samples to draw from one row group."""

    num_samples: int
    before: int  # what all row groups before it in the split are expected to give, in 2^-SAMPLE_BITS


@dataclass(frozen=True)
class Read:
    """The units [start, stop) of one row group in its shuffled order, which one lane takes."""

    file: DatasetFile
    row_group: int  # in the file
    lane: int
    first_step: int  # the first step of the epoch that needs it
    start: int
    stop: int
    shuffle_key: tuple[int, int, int] | None  # (seed, epoch, number of the row group in the split); None: file order
    draw: Draw | None = None  # of a plan in samples

    @property
    def row_group_key(self) -> tuple[str, int]:
        """The file, and the number of the row group in it."""
        return self.file.path, self.row_group

    @property
    def counts(self) -> RowGroup:
        """The manifest's counts of the row group."""
        return self.file.row_groups[self.row_group]


class Plan:
    """The reads of every rank and step, in every epoch over `files`; `seed=None` is file order, for evaluation.

    An epoch ends after `share` of its order, in whole row groups but the last: a random part of the split, another one in
    each epoch. `expected` is for `unit="samples"`: what each row group of `files` is expected to give, in 2^-SAMPLE_BITS. After the sum S
    of the row groups up to one, round(S) samples have been drawn, so each gives the same number in every epoch.
    Raises InputError where the batch does not divide over the lanes, or there is nothing to read.
    """

    def __init__(
        self,
        files: Sequence[DatasetFile],
        *,
        batch_size: int,
        lanes: int,
        seed: int | None,
        unit: str = "impressions",
        expected: Sequence[int] | None = None,
        share: float = 1.0,
    ) -> None:
        assert unit in UNITS, unit
        assert (expected is not None) == (unit == "samples"), unit
        check_batch(batch_size, lanes)
        self.batch_size, self.lanes, self.seed, self.unit = batch_size, lanes, seed, unit
        self._groups = [(file, number) for file in files for number in range(len(file.row_groups))]
        self._before: np.ndarray | None = None  # of each row group: what those before it are expected to give
        if expected is None:
            self._units = np.array([getattr(file.row_groups[number], unit) for file, number in self._groups], np.int64)
        else:
            sums = np.cumsum([0, *expected], dtype=np.int64)
            self._before, self._units = sums[:-1], np.diff(whole_samples(sums))
        self.num_impressions = int(self._units.sum())
        if self.num_impressions == 0:
            raise InputError(f"The split holds no {unit}, so there is nothing to read; choose another split or model.")
        self.num_impressions = max(1, round(share * self.num_impressions))
        # In Python's integers, which cannot overflow.
        self._bounds = [lane * self.num_impressions // lanes for lane in range(lanes + 1)]
        longest = max(stop - start for start, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True))
        self._lane_batch = batch_size // lanes
        self.num_steps = -(-longest // self._lane_batch)

    def step_size(self, step: int) -> int:
        """Return the number of units in the global batch of `step`."""
        return sum(self.lane_size(lane, step) for lane in range(self.lanes))

    def lane_size(self, lane: int, step: int) -> int:
        """Return the number of units that `lane` contributes to the global batch of `step`."""
        left = self._bounds[lane + 1] - self._bounds[lane] - step * self._lane_batch
        return min(max(left, 0), self._lane_batch)

    def lanes_of(self, rank: int, world_size: int) -> range:
        """Return the lanes that `rank` serves. Raises InputError unless `world_size` divides the number of lanes."""
        if world_size > self.lanes:
            raise InputError(
                f"world_size={world_size} has more ranks than plan.lanes={self.lanes}; start at most {self.lanes} "
                f"ranks, or set plan.lanes to a multiple of {world_size} (which changes the batches)."
            )
        if self.lanes % world_size:
            fitting = ", ".join(str(size) for size in range(1, self.lanes + 1) if self.lanes % size == 0)
            raise InputError(
                f"world_size={world_size} does not divide plan.lanes={self.lanes}; start {fitting} ranks, "
                f"or set plan.lanes to a multiple of {world_size} (which changes the batches)."
            )
        assert 0 <= rank < world_size, (rank, world_size)
        return range(rank, self.lanes, world_size)

    def reads(self, epoch: int, rank: int, world_size: int, start_step: int = 0) -> list[Read]:
        """List what `rank` reads from `start_step` of `epoch` on, in the order in which its steps need it.

        Within a step that is by lane, then by position; a row group that a lane's end cuts is read by both lanes.
        """
        order = self._order(epoch)
        ends = np.cumsum(self._units[order])
        reads: list[Read] = []
        for lane in self.lanes_of(rank, world_size):
            origin, stop = self._bounds[lane], self._bounds[lane + 1]
            start = min(origin + start_step * self._lane_batch, stop)
            place = int(np.searchsorted(ends, start, side="right"))  # row groups without a unit are skipped
            while start < stop:
                group = int(order[place])
                group_end = int(ends[place])
                group_start = group_end - int(self._units[group])
                if group_end > start:
                    reads.append(
                        Read(
                            *self._groups[group],
                            lane=lane,
                            first_step=(start - origin) // self._lane_batch,
                            start=start - group_start,
                            stop=min(stop, group_end) - group_start,
                            shuffle_key=None if self.seed is None else (self.seed, epoch, group),
                            draw=self._draw(group),
                        )
                    )
                start = group_end
                place += 1
        return sorted(reads, key=lambda read: (read.first_step, read.lane))  # stable: by position within a lane

    def row_groups_of(self, epoch: int, step: int) -> list[tuple[str, int]]:
        """List (file, row group) of all row groups that the global batch of `step` is taken from."""
        reads = self.reads(epoch, 0, 1, step)
        return sorted({(read.file.path, read.row_group) for read in reads if read.first_step == step})

    def _draw(self, group: int) -> Draw | None:
        return None if self._before is None else Draw(int(self._units[group]), int(self._before[group]))

    def _order(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(len(self._groups))
        return permutation((self.seed, epoch, _ORDER_OF_GROUPS), len(self._groups))


def whole_samples(expected: _Sums) -> _Sums:
    """Round sums of expected samples, int64 in 2^-SAMPLE_BITS, to whole samples, halves up."""
    return (expected + (1 << (SAMPLE_BITS - 1))) >> SAMPLE_BITS


def permutation(key: tuple[int, int, int], count: int) -> np.ndarray:
    """Return a permutation of range(count) that depends on `key` alone: the order of `count` random 64-bit numbers.

    Philox is counter-based, and NumPy guarantees its raw output; it does not guarantee Generator.permutation.
    """
    seed, epoch, stream = key
    counter = np.array([0, 0, stream, epoch], np.uint64)
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter).random_raw(count)
    return np.argsort(bits, kind="stable")


def check_batch(batch_size: int, lanes: int) -> None:
    """Raise InputError unless `batch_size` units divide over `lanes`."""
    if lanes < 1:
        raise InputError(f"plan.lanes={lanes} is below 1; choose a multiple of every number of ranks that you may use.")
    if batch_size < 1 or batch_size % lanes:
        nearest = max(1, round(batch_size / lanes)) * lanes
        raise InputError(
            f"plan.batch_size={batch_size} does not divide over plan.lanes={lanes}; try {batch_size} → {nearest}."
        )
