"""The feed: read the plan's row groups through Petastorm, and cut and collate them into one rank's batches, ahead.

    Petastorm's threads: read, check, pack a row group  →  one thread cuts pieces  →  threads collate  →  the trainer

Reading, decompression, validation and collation run without the GIL, beside training. A batch depends on its pieces alone, and
batches come in order: they are the same for any number of threads.
"""

import collections
import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.dataset.manifest import LABELS, Manifest
from pipeline.errors import InputError
from training.feed.batch import Batch
from training.feed.collate import Piece, collate
from training.feed.columns import Columns
from training.feed.dataset_files import DatasetFiles
from training.feed.device_copy import in_one_block
from training.feed.petastorm_reader import PlannedReader
from training.feed.plan import Plan, Read
from training.feed.row_groups import RowGroupData, pack_row_group
from training.feed.sampling import Sampler
from training.feed.settings import FeedSettings

#: How long the thread waits for room in the queue before it checks whether it has been stopped.
_QUEUE_WAIT_S = 0.05
#: The fraction of an epoch's reads that must be repeated ones, for row groups to be kept for them.
_WORTH_KEEPING = 0.02


class Feed:
    """The batches of one rank, epoch by epoch.

    `pooling` gives sum or mean for every multi-valued field. `fields` restricts what is read (None: all). With `pin`, a batch
    lies in one block of page-locked memory, from which a GPU copies asynchronously. `num_cores` are those of the rank, which
    choose the threads where the settings do not. `sampler` draws what a plan in samples counts, and
    weighs impressions: their weights come among the labels of a batch. `num_copies` repeats the bags
    of a batch, for fields that have so many tables.
    Raises InputError where the settings, the ranks or the fields do not fit the dataset.
    """

    def __init__(
        self,
        dataset: str,
        manifest: Manifest,
        split: str,
        plan: Plan,
        *,
        rank: int,
        world_size: int,
        pooling: Mapping[str, str],
        fields: Sequence[str] | None = None,
        settings: FeedSettings | None = None,
        pin: bool = False,
        sampler: Sampler | None = None,
        num_copies: int = 1,
        num_cores: int = 1,
    ) -> None:
        manifest.files_of(split)  # raises for an unknown split
        assert sampler or plan.unit != "samples"
        plan.lanes_of(rank, world_size)
        self._plan, self._rank, self._world_size = plan, rank, world_size
        self._settings = settings or FeedSettings()
        self._num_threads = self._settings.threads_for(num_cores, on_gpu=pin)
        self._pin, self._sampler = pin, sampler
        columns = _chosen_columns(manifest, pooling, fields)
        weighs = sampler is not None and sampler.weighs
        self._columns = dataclasses.replace(columns, importance=weighs, num_copies=num_copies)
        self._files = DatasetFiles(dataset, self._columns, self._settings.verify, self._settings.decoder)
        self._running: _BackgroundBatches | None = None
        #: Seconds that the consumer has waited for batches.
        self.wait_s = 0.0

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batch of each step from `start_step` to the end of `epoch`; a batch may be empty.

        Raises InputError, naming file, row group and column, for data that contradicts the manifest.
        """
        self.close()
        running = self._running = _BackgroundBatches(self._collated(epoch, start_step), self._settings.batches_ahead)
        try:
            while True:
                start_s = time.monotonic()
                batch = running.get()
                self.wait_s += time.monotonic() - start_s
                if batch is None:
                    return
                yield batch
        finally:
            running.close()

    def empty_batch(self) -> Batch:
        """Return a batch without impressions."""
        return collate([], self._columns)

    def close(self) -> None:
        """Stop reading; a later call of `batches` starts again."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _collated(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """Collate the batch of each step, several at a time where there are several threads; they come in order."""
        with contextlib.closing(self._pieces_by_step(epoch, start_step)) as steps:
            if self._num_threads == 1:
                yield from map(self._collate, steps)
                return
            with ThreadPoolExecutor(self._num_threads, thread_name_prefix="collate") as pool:
                yield from _in_order(pool, self._collate, steps, self._num_threads)

    def _collate(self, pieces: Sequence[Piece]) -> Batch:
        batch = collate(pieces, self._columns)
        return in_one_block(batch, is_pinned=True) if self._pin else batch

    def _pieces_by_step(self, epoch: int, start_step: int) -> Generator[list[Piece], None, None]:
        """Cut the row groups into what each step takes, lane by lane."""
        reads = self._plan.reads(epoch, self._rank, self._world_size, start_step)
        lanes = self._plan.lanes_of(self._rank, self._world_size)
        with contextlib.closing(self._row_groups(reads)) as upcoming:
            left: dict[int, Piece] = {}  # lane → the rest of its row group
            for step in range(start_step, self._plan.num_steps):
                pieces: list[Piece] = []
                for lane in lanes:
                    wanted = self._plan.lane_size(lane, step)
                    while wanted:
                        if lane not in left:
                            read, data = next(upcoming)
                            assert (read.lane, read.first_step) == (lane, step), read
                            left[lane] = Piece(data, read.start, read.stop)
                        piece = left.pop(lane)
                        stop = min(piece.start + wanted, piece.stop)
                        pieces.append(Piece(piece.data, piece.start, stop))
                        wanted -= stop - piece.start
                        if stop < piece.stop:
                            left[lane] = Piece(piece.data, stop, piece.stop)
                yield pieces

    def _row_groups(self, reads: Sequence[Read]) -> Generator[tuple[Read, RowGroupData], None, None]:
        """Yield each of `reads` with its row group, read ahead.

        The row group in which one lane ends is the first of the next lane, so a rank that serves both reads it twice.
        Where such reads are many, the row group is kept in between: at most lanes - 1 row groups of memory.
        """
        uses = collections.Counter(read.row_group_key for read in reads)
        keeps = len(reads) - len(uses) > _WORTH_KEEPING * len(reads)
        first = {read.row_group_key: read for read in reversed(reads)}
        reader = PlannedReader[Read, RowGroupData](
            [read for read in reads if first[read.row_group_key] is read] if keeps else reads,
            self._load,
            num_threads=self._num_threads,
            num_ahead=self._settings.row_groups_ahead + self._num_threads - 1,
        )
        kept: dict[tuple[str, int], RowGroupData] = {}
        try:
            for read in reads:
                key = read.row_group_key
                data = kept.pop(key) if key in kept else next(reader)
                uses[key] -= 1
                if keeps and uses[key]:
                    kept[key] = data
                yield read, data
        finally:
            reader.close()

    def _load(self, read: Read) -> RowGroupData:
        """Read, validate and pack one row group, in one of Petastorm's threads."""
        return pack_row_group(
            self._files.read(read.file, read.row_group),
            self._columns,
            read.counts,
            f"{read.file.path}, row group {read.row_group}",
            shuffle_key=read.shuffle_key,
            clicked_only=self._plan.unit == "clicks",
            draw=self._drawing(read),
            weigh=self._sampler.weigh if self._sampler and self._sampler.weighs else None,
        )

    def _drawing(self, read: Read) -> Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray] | None:
        """Return how to draw the samples of `read`, where the plan counts in samples."""
        if read.draw is None:
            return None
        assert self._sampler is not None
        assert read.shuffle_key is not None, "an epoch of samples is drawn by its number"
        return functools.partial(self._sampler.draw, read.shuffle_key[1], read.draw)


def _in_order(
    pool: ThreadPoolExecutor, collate_one: Callable[[list[Piece]], Batch], steps: Iterator[list[Piece]], num_ahead: int
) -> Iterator[Batch]:
    """Yield the batch of each of `steps`, in order; an exception of `steps` comes after the batches before it."""
    underway: collections.deque[Future[Batch]] = collections.deque()
    failure: Exception | None = None
    try:
        while failure is None or underway:
            while failure is None and len(underway) <= num_ahead:
                try:
                    underway.append(pool.submit(collate_one, next(steps)))
                except Exception as error:  # StopIteration is one: there are no more
                    failure = error
            if underway:
                yield underway.popleft().result()
    finally:
        for future in underway:
            future.cancel()
    if not isinstance(failure, StopIteration):
        assert failure is not None
        raise failure


def _chosen_columns(manifest: Manifest, pooling: Mapping[str, str], fields: Sequence[str] | None) -> Columns:
    names = {entry.name for entry in manifest.fields}
    for name in fields or ():
        if name not in names:
            raise InputError(f"The dataset has no field {name}; it has {', '.join(sorted(names))}.")
    chosen = tuple(entry for entry in manifest.fields if fields is None or entry.name in fields)
    return Columns(chosen, pooling, tuple(label for label in LABELS if label in manifest.labels))


class _BackgroundBatches:
    """An iterator in its own thread, at most `size` items ahead of its consumer."""

    def __init__(self, items: Iterator[Batch], size: int) -> None:
        self._items = items
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collate", daemon=True)
        self._thread.start()

    def get(self) -> Batch | None:
        """Return the next item, None after the last. Raises what the iterator raised."""
        assert not self._stopped.is_set(), "the feed was closed, or asked for another epoch, while this one was running"
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the iterator, let it clean up, and wait for the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with contextlib.closing(self._items):  # type: ignore[type-var]
                for item in self._items:
                    if not self._put(item):
                        return
            self._put(None)
        except BaseException as error:  # for the consumer's thread to raise
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        """Put the item into the queue. Return False if the consumer has stopped instead."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_QUEUE_WAIT_S)
                return True
        return False
