"""Copy batches to the device, one ahead: from one pinned block, on its own stream, while the previous step computes.

On a CPU nothing is copied and streams do nothing. The same code runs, so that its order is tested without a GPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from training.feed.batch import Bags, Batch

#: Where a tensor begins in a block: a multiple of this many bytes, as vector loads want it.
_PART_BYTES = 128


def map_tensors(part: Any, function: Any) -> Any:
    """Apply `function` to every tensor of a batch, or of a part of one, but the block that they are parts of."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, dict):
        return {name: map_tensors(value, function) for name, value in part.items()}
    if isinstance(part, Bags | Batch):
        values = {entry.name: getattr(part, entry.name) for entry in fields(part)}
        return replace(
            part, **{name: map_tensors(value, function) for name, value in values.items() if name != "block"}
        )
    return part


def in_one_block(batch: Batch, is_pinned: bool) -> Batch:
    """Copy the tensors of `batch` into one block of memory, so that one copy brings all of them to a GPU.

    A GPU copies from page-locked (pinned) memory while its kernels run.
    """
    num_bytes = 0

    def count(tensor: Tensor) -> None:
        nonlocal num_bytes
        num_bytes += -(-tensor.nbytes // _PART_BYTES) * _PART_BYTES

    map_tensors(batch, count)
    block = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
    packed: Batch = map_tensors(batch, _Parts(block).next_like)
    for part, whole in zip(_tensors_in(packed), _tensors_in(batch), strict=True):
        part.copy_(whole)
    packed.block = block
    return packed


class _Parts:
    """Cuts a block into tensors, one after the other."""

    def __init__(self, block: Tensor) -> None:
        self._block, self._at = block, 0

    def next_like(self, tensor: Tensor) -> Tensor:
        """Return the next part, of the type and shape of `tensor`."""
        part = self._block[self._at : self._at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._at += -(-tensor.nbytes // _PART_BYTES) * _PART_BYTES
        return part


def _tensors_in(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(batch, found.append)
    return found


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy `batch` to `device`, asynchronously from pinned memory; tensors that are there already are not copied."""
    if batch.block is None or batch.block.device == device:
        return replace(map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True)), block=batch.block)
    block = batch.block.to(device, non_blocking=True)
    return replace(map_tensors(batch, _Parts(block).next_like), block=block)


def prefetch_to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield `batches` on `device`; the copy of the next one starts before the current one is yielded.

    An exception of `batches` is raised in its turn, after the batches before it.
    """
    backend = torch.get_device_module(device)
    copying = backend.Stream()

    def start_next() -> Batch | None:
        host = next(batches, None)
        if host is None:
            return None
        with backend.stream(copying):
            return to_device(host, device)

    current = start_next()
    while current is not None:
        computing = backend.current_stream()
        computing.wait_stream(copying)
        if device.type == "cuda":
            # The memory belongs to the copying stream, which must not reuse it while kernels of this stream read it.
            assert current.block is not None
            current.block.record_stream(computing)
        following, failure = None, None
        try:
            following = start_next()
        except Exception as error:
            failure = error
        yield current
        if failure is not None:
            raise failure
        current = following


def on_device(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of a few numbers on `device`. A GPU copies them when it comes to it, and the host goes on."""
    tensor = torch.tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
