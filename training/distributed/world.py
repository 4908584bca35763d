"""The ranks of one run: how they meet, their collectives, and how they agree on an error.

Without torchrun the process is a world of one, which takes the same code path (a process group, sharded tables) and opens
no port.
"""

import functools
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import InputError, TryAgainError
from training.distributed.devices import check_own_gpus, choose_device
from training.distributed.meeting import Meeting, meet
from training.distributed.settings import WorldSettings
from training.distributed.torchrun import Place, cores_of_rank, note_error, place_of, speaks

#: Exit status of a rank that another one has left alone in a call that nothing interrupts.
EXIT_LOST = os.EX_TEMPFAIL
_LATE_S = 10.0  # gloo may keep its own timeout so much later
_DYING_S = 1.0  # a process that has closed its connections may still be seen for so long
_LAST_GROUP: dict[str, Any] = {}  # "group": the process group of the last `join`, which has been left


@dataclass(frozen=True)
class Pending:
    """A collective that has been started."""

    values: Tensor  # not to be read before `wait`
    work: Any = None  # None: there is nothing to wait for

    def wait(self) -> Tensor:
        """Wait for the collective and return its values."""
        if self.work is not None:
            self.work.wait()
        return self.values


@dataclass(frozen=True)
class _Arrival:
    """The end of a copy from the device."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """Have the host wait for it."""
        self.event.synchronize()


@functools.cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    device: torch.device
    num_cores: int = 1  # of the host, for this rank
    local_rank: int = 0  # among the ranks of this host

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the ranks, in place."""
        return self.start_sum(values).wait()

    def start_sum(self, values: Tensor) -> Pending:
        """Start to sum `values` over the ranks, in place."""
        return Pending(values, dist.all_reduce(values, async_op=True) if self.size > 1 else None)

    def start_sum_for_host(self, values: Tensor) -> Pending:
        """Start to sum `values` over the ranks and to copy the sums to the host, while the device computes on."""
        if self.device.type != "cuda":
            return self.start_sum(values)
        copying = _copying_stream(self.device)
        copying.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(copying):
            sums = self.start_sum(values).wait()
            on_host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            on_host.copy_(sums, non_blocking=True)
            sums.record_stream(copying)
            return Pending(on_host, _Arrival(copying.record_event()))

    def start_exchange(
        self, values: Tensor, send_sizes: list[int], receive_sizes: list[int], into: Tensor | None = None
    ) -> Pending:
        """Start an all-to-all: the first `send_sizes[0]` of `values` go to rank 0, the next `send_sizes[1]` to rank 1, ….

        What arrives, `receive_sizes` of each rank, lies in the order of the ranks in `into`, or in a new tensor.
        """
        if into is None:
            into = values.new_empty(sum(receive_sizes))
        if self.size == 1:
            return Pending(into)
        return Pending(into, dist.all_to_all_single(into, values, receive_sizes, send_sizes, async_op=True))

    def max(self, values: list[int]) -> list[int]:
        """Return the largest of each of `values` over the ranks."""
        table = torch.tensor(values, device=self.device)
        if self.size > 1:
            dist.all_reduce(table, dist.ReduceOp.MAX)
        return table.tolist()

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device))

    def broadcast(self, value: int) -> int:
        """Return rank 0's integer on every rank."""
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        if self.size > 1:
            dist.broadcast(shared, src=0)
        return int(shared.item())

    def gather(self, row: list[int]) -> list[list[int]]:
        """Return every rank's `row` on every rank, by rank; all rows are of one length."""
        table = torch.zeros((self.size, len(row)), dtype=torch.int64, device=self.device)
        table[self.rank] = torch.tensor(row, dtype=torch.int64)
        return self.sum(table).tolist()

    def collect(self, columns: Tensor) -> Tensor | None:
        """Join [columns, N of this rank] of all ranks to [columns, N of all], in the order of the ranks.

        Returns it on rank 0, in the host's memory, and None elsewhere.
        """
        if self.size == 1:
            return columns
        counts = [row[0] for row in self.gather([columns.shape[1]])]
        padded = torch.zeros((len(columns), max(counts)), dtype=columns.dtype, device=self.device)
        padded[:, : columns.shape[1]] = columns
        parts = [torch.empty_like(padded) for _ in counts] if self.rank == 0 else None
        dist.gather(padded, parts, dst=0)
        if parts is None:
            return None
        return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1).cpu()

    def agree(self, error: InputError | None) -> None:
        """Raise the first failing rank's error on every rank; do nothing where no rank has one.

        Every rank must call it. Without it a file that rank 3 alone reads would stop rank 3, and the others would wait for
        the timeout.
        """
        message = str(error).encode() if error else b""
        lengths = [row[0] for row in self.gather([len(message)])]
        failed = next((rank for rank, length in enumerate(lengths) if length), None)
        if failed is None:
            return
        letters = torch.zeros(lengths[failed], dtype=torch.uint8, device=self.device)
        if failed == self.rank:
            letters.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        if self.size > 1:
            dist.broadcast(letters, src=failed)
        raise InputError(bytes(letters.cpu().numpy()).decode()) from error

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Raise the InputError of any rank's block on every rank, at its end.

        Every rank must enter it, and inside it no rank may wait for another.
        """
        try:
            yield
        except InputError as error:
            self.agree(error)
        else:
            self.agree(None)


@contextmanager
def join(settings: WorldSettings) -> Iterator[World]:
    """Meet the other ranks (gloo on CPU, NCCL on GPU) for the length of the block.

    Raises InputError for a device that cannot be used (`devices.choose_device`), and TryAgainError where a rank does not
    come, is lost or does not answer within `timeout_s`.
    """
    place = place_of() or Place(rank=0, size=1, local_rank=0, local_size=1, start="")
    device = choose_device(settings, place)
    num_cores = cores_of_rank(place)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_cores)
    # TorchRec calls deprecated parts of torch, which the user cannot change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|torchrec")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    meeting = meet(place, settings.timeout_s) if place.size > 1 else Meeting(_store())
    with _lost_rank_as_input_error(meeting, settings.timeout_s):
        with _deadline(settings.timeout_s, meeting):
            check_own_gpus(place, device, meeting.store)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=meeting.store,
                rank=place.rank,
                world_size=place.size,
                timeout=timedelta(seconds=settings.timeout_s),
            )
        try:
            world = World(place.rank, place.size, device, num_cores, place.local_rank)
            if meeting.path and device.type == "cpu":
                world.barrier()  # gloo has read what it needs; NCCL reads the store at its first collective
                meeting.path.unlink(missing_ok=True)
            yield world
        finally:
            # Trap: a group that nothing but DDP's reducer keeps alive is destroyed with the reducer, which does not release
            # Python's lock. Gloo's threads, for which the destructor waits, may need that lock: a deadlock. So Python keeps
            # the group too, until the next `join` or the end of the process.
            _LAST_GROUP["group"] = dist.group.WORLD
            dist.destroy_process_group()


@contextmanager
def _lost_rank_as_input_error(meeting: Meeting, timeout_s: float) -> Iterator[None]:
    """Raise InputError for the block's error of torch that means a lost or silent rank."""
    try:
        yield
    except RuntimeError as error:
        if not _means_a_lost_rank(error):
            raise
        message = _lost_rank(meeting, timeout_s)
        if not speaks():  # rank 0, which would print it, may be the lost one
            print(f"error: {message}", file=sys.stderr, flush=True)
        raise TryAgainError(message) from error


@contextmanager
def _deadline(timeout_s: float, meeting: Meeting) -> Iterator[None]:
    """End the process with an error message if the block takes longer than `timeout_s` and some seconds.

    Most of the time gloo keeps its own timeout. But it repeats a connection that fails, for the timeout each time, and
    nothing interrupts it.
    """

    def give_up() -> None:
        message = f"error: {_lost_rank(meeting, timeout_s)}"
        note_error(message)
        print(message, file=sys.stderr, flush=True)
        os._exit(EXIT_LOST)

    timer = threading.Timer(timeout_s + _LATE_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _lost_rank(meeting: Meeting, timeout_s: float) -> str:
    """Describe what is known of a lost or silent rank; nothing of torch's own text, which is for its authors."""
    end_s = time.monotonic() + _DYING_S
    while not (gone := meeting.gone()) and meeting.pids and time.monotonic() < end_s:
        time.sleep(_DYING_S / 20)
    return (
        f"Another rank ended, or did not answer within world.timeout_s={timeout_s:g}{f': {gone} ended' if gone else ''}. "
        "Look for the cause in that rank's own output, then run the same command again: it resumes from the last complete "
        "checkpoint. If all ranks are alive but slow, raise world.timeout_s."
    )


def _means_a_lost_rank(error: RuntimeError) -> bool:
    """Tell the error of a lost or silent rank by its type (NCCL and the store) or its text (gloo).

    Gloo raises plain RuntimeErrors, most of which begin with the name of its source file.
    """
    words_of_gloo = ("gloo/transport", "Gloo", "pair closure", "Wait timeout")
    return isinstance(error, dist.DistError) or any(words in str(error) for words in words_of_gloo)


def _store() -> Any:
    """Make an in-process store: no rendezvous, no port."""
    return dist.HashStore()  # type: ignore[attr-defined]
