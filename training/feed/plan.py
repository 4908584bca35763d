"""The plan: which rank reads which row group at which step. Pure arithmetic over the manifest, no I/O (DESIGN §6).

The row groups of a split, in an order shuffled by (seed, epoch), form one sequence of N units. Lane l of L serves
[lN/L, (l+1)N/L) of it; each step takes B/L units of every lane, so only the last is short; rank r of W serves the
lanes l with l mod W = r. L does not change with the number of ranks, so neither does the global batch of a step, and
resuming at step t is a computation. A unit is an impression, or a clicked impression for models that train on clicks.
"""

# Units: N of a split, B a global batch, L lanes, G row groups, W ranks.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.manifest import DatasetFile, RowGroup
from pipeline.errors import InputError

UNITS = ("impressions", "clicks")
#: Separates the random stream of the row groups' order from those of the rows inside each.
_ORDER_OF_GROUPS = 2**64 - 1


@dataclass
class PlanSettings:
    """The configuration group `plan`."""

    batch_size: int = 5000  # impressions (or clicks, model.train_on) a step, over all ranks
    lanes: int = 8  # any number of ranks that divides it sees the same batches
    seed: int = 1  # of the order of the data

    def __post_init__(self) -> None:
        check_batch(self.batch_size, self.lanes)
        if self.seed < 0:
            raise InputError(f"plan.seed={self.seed} is negative; any number from 0 on serves.")


@dataclass(frozen=True)
class Read:
    """One row group, as one lane takes from it: the units [start, stop) of its rows in shuffled order."""

    file: DatasetFile
    row_group: int  # in the file
    lane: int
    first_step: int  # of the epoch; the step that needs it first
    start: int
    stop: int
    shuffle_key: tuple[int, int, int] | None  # (seed, epoch, number of the row group in the split); None: file order

    @property
    def place(self) -> tuple[str, int]:
        """The row group: file and number in it."""
        return self.file.path, self.row_group

    @property
    def counts(self) -> RowGroup:
        """What the manifest says of the row group."""
        return self.file.row_groups[self.row_group]


class Plan:
    """Who reads what, when, in every epoch over `files`; `seed=None` is file order, for evaluation.

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
    ) -> None:
        assert unit in UNITS, unit
        check_batch(batch_size, lanes)
        self.batch_size, self.lanes, self.seed, self.unit = batch_size, lanes, seed, unit
        self._groups = [(file, number) for file in files for number in range(len(file.row_groups))]
        self._units_G = np.array([getattr(file.row_groups[number], unit) for file, number in self._groups], np.int64)
        self.num_impressions = int(self._units_G.sum())
        if self.num_impressions == 0:
            raise InputError(f"The split holds no {unit}, so there is nothing to read; choose another split or model.")
        # Python's integers: l * N overflows int64 for no dataset that exists, but the proof is not worth its space.
        self._bounds = [lane * self.num_impressions // lanes for lane in range(lanes + 1)]
        longest = max(stop - start for start, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True))
        self._share = batch_size // lanes
        self.num_steps = -(-longest // self._share)

    def step_size(self, step: int) -> int:
        """The units of the global batch of `step`, summed over all ranks."""
        return sum(self.lane_size(lane, step) for lane in range(self.lanes))

    def lane_size(self, lane: int, step: int) -> int:
        """The units that `lane` gives to the global batch of `step`."""
        left = self._bounds[lane + 1] - self._bounds[lane] - step * self._share
        return min(max(left, 0), self._share)

    def lanes_of(self, rank: int, world_size: int) -> range:
        """The lanes that `rank` serves; InputError unless `world_size` divides the number of lanes."""
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
        order_G = self._order(epoch)
        ends_G = np.cumsum(self._units_G[order_G])
        reads: list[Read] = []
        for lane in self.lanes_of(rank, world_size):
            origin, stop = self._bounds[lane], self._bounds[lane + 1]
            start = min(origin + start_step * self._share, stop)
            place = int(np.searchsorted(ends_G, start, side="right"))  # row groups without a unit are skipped
            while start < stop:
                group = int(order_G[place])
                group_end = int(ends_G[place])
                group_start = group_end - int(self._units_G[group])
                if group_end > start:
                    reads.append(
                        Read(
                            *self._groups[group],
                            lane=lane,
                            first_step=(start - origin) // self._share,
                            start=start - group_start,
                            stop=min(stop, group_end) - group_start,
                            shuffle_key=None if self.seed is None else (self.seed, epoch, group),
                        )
                    )
                start = group_end
                place += 1
        return sorted(reads, key=lambda read: (read.first_step, read.lane))  # stable: by position within a lane

    def row_groups_of(self, epoch: int, step: int) -> list[tuple[str, int]]:
        """(file, row group) of all that the global batch of `step` is taken from."""
        reads = self.reads(epoch, 0, 1, step)
        return sorted({(read.file.path, read.row_group) for read in reads if read.first_step == step})

    def _order(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(len(self._groups))
        return permutation((self.seed, epoch, _ORDER_OF_GROUPS), len(self._groups))


def permutation(key: tuple[int, int, int], count: int) -> np.ndarray:
    """A permutation of range(count) that depends on `key` alone: the order of `count` random 64-bit numbers.

    Philox is counter-based and its raw output is fixed for good, which numpy's Generator.permutation is not.
    """
    seed, epoch, stream = key
    counter = np.array([0, 0, stream, epoch], np.uint64)
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter).random_raw(count)
    return np.argsort(bits, kind="stable")


def check_batch(batch_size: int, lanes: int) -> None:
    """InputError unless `batch_size` impressions divide over `lanes`."""
    if lanes < 1:
        raise InputError(f"plan.lanes={lanes} is below 1; give a multiple of every number of ranks that you may use.")
    if batch_size < 1 or batch_size % lanes:
        nearest = max(1, round(batch_size / lanes)) * lanes
        raise InputError(
            f"plan.batch_size={batch_size} does not divide over plan.lanes={lanes}; try {batch_size} → {nearest}."
        )
