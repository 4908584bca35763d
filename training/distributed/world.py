"""The ranks of one run: who they are, how they meet, and how they agree.

The only module that reads RANK, WORLD_SIZE and LOCAL_RANK. Under torchrun the ranks meet at its rendezvous; without
it the process is a world of one, which takes the same code path (a process group, sharded tables) and opens no port.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import InputError
from training.distributed.settings import WorldSettings
from training.distributed.torchrun import speaks

_LEFT: dict[str, Any] = {}  # the process group of the last `join`


@dataclass(frozen=True)
class Pending:
    """A collective that is under way."""

    values: Tensor  # not to be read before `wait`
    work: Any = None  # None: there was nothing to do

    def wait(self) -> Tensor:
        """The values, once they are there."""
        if self.work is not None:
            self.work.wait()
        return self.values


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the ranks, in place."""
        return self.start_sum(values).wait()

    def start_sum(self, values: Tensor) -> Pending:
        """Begin to sum `values` over the ranks, in place."""
        return Pending(values, dist.all_reduce(values, async_op=True) if self.size > 1 else None)

    def start_exchange(
        self, values: Tensor, sizes: list[int], coming_sizes: list[int], into: Tensor | None = None
    ) -> Pending:
        """Begin to send the first `sizes[0]` of `values` to rank 0, the next `sizes[1]` to rank 1, …, and to receive
        `coming_sizes` of each, in the order of the ranks."""
        if into is None:
            into = values.new_empty(sum(coming_sizes))
        if self.size == 1:
            return Pending(into)
        return Pending(into, dist.all_to_all_single(into, values, coming_sizes, sizes, async_op=True))

    def max(self, values: list[int]) -> list[int]:
        """The largest of each over the ranks."""
        table = torch.tensor(values, device=self.device)
        if self.size > 1:
            dist.all_reduce(table, dist.ReduceOp.MAX)
        return table.tolist()

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device))

    def broadcast(self, value: int) -> int:
        """Rank 0's integer, on every rank."""
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        if self.size > 1:
            dist.broadcast(shared, src=0)
        return int(shared.item())

    def gather(self, row: list[int]) -> list[list[int]]:
        """Every rank's list of integers (all of one length), by rank."""
        table = torch.zeros((self.size, len(row)), dtype=torch.int64, device=self.device)
        table[self.rank] = torch.tensor(row, dtype=torch.int64)
        return self.sum(table).tolist()

    def collect(self, values_CN: Tensor) -> Tensor | None:
        """The columns of all ranks side by side in the order of the ranks, on rank 0 and in memory; None elsewhere."""
        if self.size == 1:
            return values_CN
        counts = [row[0] for row in self.gather([values_CN.shape[1]])]
        padded_CN = torch.zeros((len(values_CN), max(counts)), dtype=values_CN.dtype, device=self.device)
        padded_CN[:, : values_CN.shape[1]] = values_CN
        parts = [torch.empty_like(padded_CN) for _ in counts] if self.rank == 0 else None
        dist.gather(padded_CN, parts, dst=0)
        if parts is None:
            return None
        return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1).cpu()

    def agree(self, error: InputError | None) -> None:
        """Raise the first failing rank's error on every rank; nothing happens where no rank brings one.

        Every rank must call it. So a shard that only rank 3 reads ends the run everywhere, in one sentence, where
        the others would otherwise wait for the timeout.
        """
        told = str(error).encode() if error else b""
        lengths = [row[0] for row in self.gather([len(told)])]
        failed = next((rank for rank, length in enumerate(lengths) if length), None)
        if failed is None:
            return
        letters = torch.zeros(lengths[failed], dtype=torch.uint8, device=self.device)
        if failed == self.rank:
            letters.copy_(torch.frombuffer(bytearray(told), dtype=torch.uint8))
        if self.size > 1:
            dist.broadcast(letters, src=failed)
        raise InputError(bytes(letters.cpu().numpy()).decode()) from error

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """A block whose InputError, on any rank, is raised on every rank at its end.

        Every rank must come to it, and inside it no rank may wait for another.
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

    Raises InputError for an unknown device, or `world.device=cuda` where there is none, and where a rank is lost or
    silent for longer than `timeout_s` inside the block.
    """
    device = _device(settings.device, int(os.environ.get("LOCAL_RANK", "0")))
    # What TorchRec does with torch's deprecated parts is no news for the user.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|torchrec")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=settings.timeout_s)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=_store(), rank=0, world_size=1, timeout=timeout)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    except RuntimeError as error:
        if not _means_a_lost_rank(error):
            raise
        told = InputError(
            f"Another rank was lost, or was silent for longer than world.timeout_s={settings.timeout_s:g} "
            f"({str(error).splitlines()[0]}); its own output says why. The last checkpoint is good: run the same command "
            "again to go on from it."
        )
        if not speaks():  # the rank that does may be the lost one
            print(f"error: {told}", file=sys.stderr, flush=True)
        raise told from error
    finally:
        # Trap: DDP's reducer destroys a group that it alone holds without letting go of Python's lock, which gloo's threads
        # may be waiting for: a deadlock. So Python keeps the group too, until the next `join` or the end of the process.
        _LEFT["group"] = dist.group.WORLD
        dist.destroy_process_group()


def _means_a_lost_rank(error: RuntimeError) -> bool:
    """Gloo raises plain RuntimeErrors, most of which begin with its source file; NCCL and the store have types."""
    told_by_gloo = ("gloo/transport", "Gloo", "pair closure")
    return isinstance(error, dist.DistError) or any(words in str(error) for words in told_by_gloo)


def _store() -> Any:
    """An in-process store: no rendezvous, no port."""
    return dist.HashStore()  # type: ignore[attr-defined]


def _device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"world.device={name} is not one of auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("world.device=cuda, but torch sees no GPU here; use world.device=cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
