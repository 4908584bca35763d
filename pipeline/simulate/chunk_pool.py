"""The chunks of a split, made by several processes and handed back in order: the same bytes for any number of processes."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from pipeline.errors import InputError
from pipeline.simulate.split import ChunkContent, LogPlan, Span, Split, make_chunk

_AHEAD = 2  # chunks a process that are made, or being made, and not yet written
_plan: list[LogPlan] = []  # of a worker


class ChunkPool:
    """Makes chunks in `executor`, or in this process where there is none."""

    def __init__(self, plan: LogPlan, executor: ProcessPoolExecutor | None, processes: int) -> None:
        self._plan, self._executor, self._processes = plan, executor, processes

    def chunks(self, split: Split) -> Iterator[ChunkContent]:
        """Yield the chunks of `split` in order. Raises InputError if a process is lost."""
        if self._executor is None:
            yield from (make_chunk(self._plan, split, span) for span in split.spans())
            return
        waiting: deque[Future[ChunkContent]] = deque()
        try:
            for span in split.spans():
                waiting.append(self._executor.submit(_make_chunk_of_plan, split, span))
                if len(waiting) >= self._processes * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "A process of the simulation was ended; the system does that where memory is short. Run the same command "
                "again with fewer processes."
            ) from error


@contextmanager
def chunk_pool(plan: LogPlan, processes: int) -> Iterator[ChunkPool]:
    """Start `processes` processes for the length of the block; 1 starts none.

    They are forked, and so share the tables of the plan. Fork them before this process has threads.
    """
    if processes == 1:
        yield ChunkPool(plan, None, 1)
        return
    context = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(processes, context, _begin_worker, (plan,))
    try:
        executor.submit(os.getpid).result()
        yield ChunkPool(plan, executor, processes)
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker(plan: LogPlan) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):  # not the parent's handlers, which speak and undo
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends its workers
    _plan.append(plan)


def _make_chunk_of_plan(split: Split, span: Span) -> ChunkContent:
    return make_chunk(_plan[0], split, span)
