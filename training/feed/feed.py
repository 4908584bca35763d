"""The feed: the plan's row groups through Petastorm, cut and collated into one rank's batches, ahead of the trainer.

    Petastorm's threads: read, check, pack a row group  →  one thread: cut pieces, collate a batch  →  the trainer

Reading, decompression, checks and collation run without the GIL, beside training.
"""

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence

from pipeline.dataset.manifest import LABELS, Manifest
from pipeline.errors import InputError
from training.feed.batch import Batch
from training.feed.collate import Piece, collate
from training.feed.columns import Columns
from training.feed.dataset_files import Shards
from training.feed.device_copy import pinned
from training.feed.petastorm_reader import PlannedReader
from training.feed.plan import Plan, Read
from training.feed.row_groups import RowGroupData, pack
from training.feed.settings import FeedSettings

#: How long a full queue is waited for before the thread looks whether it has been stopped.
_QUEUE_WAIT_S = 0.05
#: Share of an epoch's readings that must be second ones for row groups to be held for them.
_WORTH_HOLDING = 0.02


class Feed:
    """The batches of one rank, epoch by epoch.

    `pooling` gives sum or mean for every field of arity many; `fields` restricts what is read (None: all);
    with `pin` batches lie in memory that a GPU copies from. Raises InputError where the settings, the ranks or the fields do not fit the dataset.
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
    ) -> None:
        manifest.files_of(split)  # says which splits there are
        plan.lanes_of(rank, world_size)
        self._plan, self._rank, self._world_size = plan, rank, world_size
        self._settings = settings or FeedSettings()
        self._pin = pin
        self._columns = _columns(manifest, pooling, fields)
        self._shards = Shards(dataset, self._columns, self._settings.verify, self._settings.decoder)
        self._running: _Ahead | None = None
        #: Seconds that the consumer has waited for a batch since construction.
        self.wait_s = 0.0

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batch of each step from `start_step` to the end of `epoch`; one may hold no impression.

        Raises InputError, naming file, row group and column, for data that is not what the manifest promises.
        """
        self.close()
        running = self._running = _Ahead(self._collated(epoch, start_step), self._settings.batches_ahead)
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

    def nothing(self) -> Batch:
        """A batch without impressions."""
        return collate([], self._columns)

    def close(self) -> None:
        """Stop reading; a later call of `batches` starts anew."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _collated(self, epoch: int, start_step: int) -> Iterator[Batch]:
        reads = self._plan.reads(epoch, self._rank, self._world_size, start_step)
        lanes = self._plan.lanes_of(self._rank, self._world_size)
        with contextlib.closing(self._row_groups(reads)) as upcoming:
            left: dict[int, Piece] = {}  # lane → what it has left of its row group
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
                batch = collate(pieces, self._columns)
                yield pinned(batch) if self._pin else batch

    def _row_groups(self, reads: Sequence[Read]) -> Generator[tuple[Read, RowGroupData], None, None]:
        """Each of `reads` with its row group, read ahead.

        A row group that ends one lane begins the next one, so a rank that serves both needs it early and late. Where
        that is much of the reading it is held in between: lanes - 1 row groups of memory, at most.
        """
        uses = collections.Counter(read.place for read in reads)
        holds = len(reads) - len(uses) > _WORTH_HOLDING * len(reads)
        once = {read.place: read for read in reversed(reads)}
        reader = PlannedReader[Read, RowGroupData](
            [read for read in reads if once[read.place] is read] if holds else reads,
            self._load,
            num_threads=self._settings.threads,
            num_ahead=self._settings.row_groups_ahead,
        )
        held: dict[tuple[str, int], RowGroupData] = {}
        try:
            for read in reads:
                data = held.pop(read.place) if read.place in held else next(reader)
                uses[read.place] -= 1
                if holds and uses[read.place]:
                    held[read.place] = data
                yield read, data
        finally:
            reader.close()

    def _load(self, read: Read) -> RowGroupData:
        """In one of Petastorm's threads: read, check and pack one row group."""
        return pack(
            self._shards.read(read.file, read.row_group),
            self._columns,
            read.counts,
            f"{read.file.path}, row group {read.row_group}",
            shuffle_key=read.shuffle_key,
            clicked_only=self._plan.unit == "clicks",
        )


def _columns(manifest: Manifest, pooling: Mapping[str, str], fields: Sequence[str] | None) -> Columns:
    names = {entry.name for entry in manifest.fields}
    for name in fields or ():
        if name not in names:
            raise InputError(f"The dataset has no field {name}; it has {', '.join(sorted(names))}.")
    chosen = tuple(entry for entry in manifest.fields if fields is None or entry.name in fields)
    return Columns(chosen, pooling, tuple(label for label in LABELS if label in manifest.labels))


class _Ahead:
    """An iterator run in a thread of its own, at most `size` items ahead of its consumer."""

    def __init__(self, items: Iterator[Batch], size: int) -> None:
        self._items = items
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collate", daemon=True)
        self._thread.start()

    def get(self) -> Batch | None:
        """The next item, None after the last; raises what the iterator raised."""
        assert not self._stopped.is_set(), (
            "the feed was closed, or asked for another epoch, while this one was going on"
        )
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the iterator, run its clean-up, and wait for the thread."""
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
        """False if nobody wants the item any more."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_QUEUE_WAIT_S)
                return True
        return False
