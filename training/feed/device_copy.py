"""Batches onto the device, one ahead: copied from pinned memory on a stream of its own while the step before computes.

On a CPU nothing is copied and a stream does nothing: the same code runs, so that its order is tested without a GPU.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from training.feed.batch import Bags, Batch


def mapped(part: Any, function: Any) -> Any:
    """A batch, or a part of one, with `function` applied to every tensor in it."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, dict):
        return {name: mapped(value, function) for name, value in part.items()}
    if isinstance(part, Bags | Batch):
        return replace(part, **{entry.name: mapped(getattr(part, entry.name), function) for entry in fields(part)})
    return part


def pinned(batch: Batch) -> Batch:
    """`batch` in memory that a GPU can copy from while its kernels run."""
    return mapped(batch, Tensor.pin_memory)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` on `device`; asynchronous where it lies in pinned memory, itself where it is there already."""
    return mapped(batch, lambda tensor: tensor.to(device, non_blocking=True))


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """`batches` on `device`, the next one on its way before the present one is given out.

    What `batches` raises comes in its turn, after the batches before it.
    """
    backend = torch.get_device_module(device)
    copying = backend.Stream()

    def begun() -> Batch | None:
        host = next(batches, None)
        if host is None:
            return None
        with backend.stream(copying):
            return to_device(host, device)

    present = begun()
    while present is not None:
        computing = backend.current_stream()
        computing.wait_stream(copying)
        if device.type == "cuda":
            # Its memory was allocated on the copying stream, which must not reuse it while kernels of this one read it.
            mapped(present, lambda tensor: tensor.record_stream(computing))  # noqa: B023  (called here and now)
        following, failure = None, None
        try:
            following = begun()
        except Exception as error:
            failure = error
        yield present
        if failure is not None:
            raise failure
        present = following
