"""Copy batches to the device, one ahead: from pinned memory, on its own stream, while the previous step computes.

On a CPU nothing is copied and streams do nothing. The same code runs, so that its order is tested without a GPU.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from training.feed.batch import Bags, Batch


def map_tensors(part: Any, function: Any) -> Any:
    """Apply `function` to every tensor of a batch, or of a part of one."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, dict):
        return {name: map_tensors(value, function) for name, value in part.items()}
    if isinstance(part, Bags | Batch):
        return replace(part, **{entry.name: map_tensors(getattr(part, entry.name), function) for entry in fields(part)})
    return part


def pin(batch: Batch) -> Batch:
    """Copy `batch` to page-locked memory, from which a GPU copies while its kernels run."""
    return map_tensors(batch, Tensor.pin_memory)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy `batch` to `device`, asynchronously from pinned memory; tensors that are there already are not copied."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


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
            map_tensors(current, lambda tensor: tensor.record_stream(computing))  # noqa: B023  (called here and now)
        following, failure = None, None
        try:
            following = start_next()
        except Exception as error:
            failure = error
        yield current
        if failure is not None:
            raise failure
        current = following
