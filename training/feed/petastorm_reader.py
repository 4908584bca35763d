"""Petastorm 0.13.1 made safe: it imports beside a modern pyarrow, loses nothing, keeps the order, and never hangs.

Petastorm streams row groups: a ventilator deals them to worker threads, and a pool hands their results to the reader.
What is replaced here, and why (DESIGN §6):

- It imports two modules that pyarrow has removed, for names that only its own handling of HDFS uses. They exist while
  petastorm is being imported and are taken away again; pyarrow itself is never touched.
- ThreadPool.get_results asks whether all work is done before it asks whether more is coming, and skips a worker that
  has nothing yet: a fast consumer loses row groups and sees the others out of order. OrderedPool waits for worker
  n mod k to give row group n.
- Its idle threads look for work a thousand times a second, and its ventilator for room a hundred times: as much CPU as
  reading the row groups took. Here they sleep until there is some, and PacedVentilator needs no thread.
- Its Reader lists the dataset's directory, unpickles the schema that lies there, and draws the order once for all
  epochs. PlannedReader is given the row groups, in order, and opens nothing.
"""

import contextlib
import queue
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: What petastorm imports and pyarrow has removed: module → class that must be importable from it.
_REMOVED = {"pyarrow.filesystem": "LocalFileSystem", "pyarrow.hdfs": "HadoopFileSystem"}


@contextlib.contextmanager
def _removed_modules() -> Iterator[None]:
    """Make the modules of _REMOVED importable, as empty classes, for the duration of the block.

    An entry of sys.modules is found before pyarrow is asked, so pyarrow gains neither a module nor an attribute.
    """
    stubs = {name: types.ModuleType(name) for name in _REMOVED if name not in sys.modules}
    for name, stub in stubs.items():
        setattr(stub, _REMOVED[name], type(_REMOVED[name], (), {}))
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]


with _removed_modules():
    from petastorm.arrow_reader_worker import ArrowReaderWorker
    from petastorm.cache import NullCache
    from petastorm.reader import Reader
    from petastorm.workers_pool import EmptyResultError, VentilatedItemProcessedMessage, thread_pool
    from petastorm.workers_pool.thread_pool import ThreadPool, WorkerTerminationRequested
    from petastorm.workers_pool.ventilator import ConcurrentVentilator

#: All names of petastorm that this file uses and petastorm does not document: class → attributes of its instances, and
#: module → constants. tests/training/feed/test_petastorm_reader.py fails when petastorm loses one, or the list lacks one.
PRIVATE_NAMES: dict[type | types.ModuleType, frozenset[str]] = {
    ThreadPool: frozenset(
        ("_ventilator", "_ventilated_items", "_results_queues", "_workers", "_ventilator_queues", "workers_count")
    ),
    ConcurrentVentilator: frozenset(
        (
            "_ventilate_fn",
            "_items_to_ventilate",
            "_iterations_remaining",
            "_ventilated_items_count",
            "_processed_items_count",
            "_max_ventilation_queue_size",
        )
    ),
    ArrowReaderWorker: frozenset(("_split_pieces", "publish_func")),
    # Reader.__init__ is not called: PlannedReader sets these.
    Reader: frozenset(
        (
            "_results_queue_reader",
            "_workers_pool",
            "cache",
            "is_batched_reader",
            "last_row_consumed",
            "ngram",
            "num_epochs",
            "schema",
            "stopped",
            "ventilator",
        )
    ),
    thread_pool: frozenset(("IO_TIMEOUT_INTERVAL_S",)),
}

#: How long a wait lasts before it looks whether a worker has died or the pool was stopped.
_LOOK_AGAIN_S = 0.1
# How long petastorm's threads sleep before they look whether they are to stop; OrderedPool.stop wakes them.
thread_pool.IO_TIMEOUT_INTERVAL_S = _LOOK_AGAIN_S


class _WakeUp:
    """Arguments of a piece of work that ends when a worker unpacks them."""

    def __iter__(self) -> Iterator[Any]:
        raise WorkerTerminationRequested


class OrderedPool(ThreadPool):
    """Petastorm's thread pool with results in the order of ventilation, none lost, and a join that always returns."""

    def __init__(self, workers_count: int, results_queue_size: int) -> None:
        super().__init__(workers_count, results_queue_size)
        self._num_processed = 0

    def get_results(self) -> Any:
        """Return the next result in order; a worker's exception stops the pool. Raises EmptyResultError after the last."""
        while True:
            # In this order: once the ventilator is done, the count of ventilated items is final. The other way round,
            # an item ventilated between the two questions would be lost.
            no_more_coming = self._ventilator is None or self._ventilator.completed()
            if no_more_coming and self._num_processed == self._ventilated_items:
                raise EmptyResultError
            worker = self._num_processed % self.workers_count
            try:
                result = self._results_queues[worker].get(timeout=_LOOK_AGAIN_S)
            except queue.Empty:
                if not self._workers[worker].is_alive() and self._results_queues[worker].empty():
                    raise RuntimeError(f"Reader thread {worker} ended without a word.") from None
                continue
            if isinstance(result, VentilatedItemProcessedMessage):
                self._num_processed += 1
                if self._ventilator is not None:
                    self._ventilator.processed_item()
            elif isinstance(result, Exception):
                self.stop()
                self.join()
                raise result
            else:
                return result

    def stop(self) -> None:
        """Tell the workers to stop, without waiting for them."""
        super().stop()
        for work in self._ventilator_queues:
            work.put((_WakeUp(), {}))

    def join(self) -> None:
        """Wait for the workers, and empty their queues: one that puts an exception into a full queue never ends."""
        for worker, results in zip(self._workers, self._results_queues, strict=True):
            while worker.is_alive():
                with contextlib.suppress(queue.Empty):
                    while True:
                        results.get_nowait()
                worker.join(_LOOK_AGAIN_S)


class PacedVentilator(ConcurrentVentilator):
    """Deals the next item when one has been consumed, in the consumer's thread."""

    def start(self) -> None:
        """Deal as many items as may be ahead."""
        self._deal()

    def processed_item(self) -> None:
        """Count one more consumed item, and deal the next."""
        super().processed_item()
        self._deal()

    def _deal(self) -> None:
        while (
            not self.completed()
            and self._ventilated_items_count - self._processed_items_count < self._max_ventilation_queue_size
        ):
            self._ventilate_fn(**self._items_to_ventilate[self._ventilated_items_count])
            self._ventilated_items_count += 1
            if self._ventilated_items_count == len(self._items_to_ventilate):
                self._iterations_remaining = 0


class RowGroupWorker(ArrowReaderWorker):
    """Reads one row group and publishes it, or publishes the exception that stopped it."""

    def __init__(self, worker_id: int, publish_func: Callable[[Any], None], args: tuple[Any, ...]) -> None:
        load, pieces = args
        # Of the parent's twelve arguments only the pieces and a cache that caches nothing are of use here.
        super().__init__(
            worker_id,
            publish_func,
            (None, None, None, None, pieces, NullCache(), None, None, None, False, None, False),
        )
        self._load = load

    def process(self, piece_index: int, worker_predicate: None, shuffle_row_drop_partition: tuple[int, int]) -> None:
        """Publish `load(piece)` for piece number `piece_index`. Petastorm passes the other two arguments, empty."""
        try:
            result = self._load(self._split_pieces[piece_index])
        except Exception as error:  # to the consumer; petastorm would print a traceback and block on a full queue
            result = error
        self.publish_func(result)

    @staticmethod
    def new_results_queue_reader() -> "_Results":
        """Return the reader of the pool's results, without petastorm's conversion to namedtuples."""
        return _Results()


class _Results:
    batched_output = True

    def read_next(self, workers_pool: OrderedPool, schema: None, ngram: None) -> Any:
        try:
            return workers_pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


class PlannedReader(Reader, Generic[Item, Result]):
    """An iterator over `load(piece)` for each of `pieces`, in order, read ahead by `num_threads` threads.

    At most `num_ahead` pieces are read, or being read, and not yet consumed. Iterating raises what `load` raises, and
    iteration ends with that. Call `close` in any case.
    """

    def __init__(
        self, pieces: Sequence[Item], load: Callable[[Item], Result], *, num_threads: int, num_ahead: int
    ) -> None:
        # In place of the parent's __init__, which opens the dataset: the same attributes, from what the plan knows.
        self.num_epochs = 1
        self.is_batched_reader = True
        self.ngram = self.schema = None
        self.cache = NullCache()
        self.last_row_consumed = self.stopped = False
        self._results_queue_reader = RowGroupWorker.new_results_queue_reader()
        self._workers_pool = OrderedPool(num_threads, num_ahead)
        items = [
            {"piece_index": number, "worker_predicate": None, "shuffle_row_drop_partition": (0, 1)}
            for number in range(len(pieces))
        ]
        self.ventilator = PacedVentilator(
            self._workers_pool.ventilate, items, max_ventilation_queue_size=max(num_ahead, num_threads)
        )
        self._workers_pool.start(RowGroupWorker, (load, pieces), ventilator=self.ventilator)

    def __next__(self) -> Result:
        result: Result = super().__next__()
        return result

    def close(self) -> None:
        """Stop the threads and wait for them; what they have read is dropped."""
        self.stop()
        self.join()
