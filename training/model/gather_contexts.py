"""Give each impression the row of its context. On a GPU the gradient is a segmented sum, for the sake of its bits."""

# Shapes: B impressions, C contexts, H width of a row.

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_contexts(rows_CH: Tensor, index_B: Tensor) -> Tensor:
    """Return [B, H]; `index_B` is non-decreasing. On a CPU, index_add_ sums the gradients, in the order of the batch."""
    return rows_CH.index_select(0, index_B) if rows_CH.device.type == "cpu" else gather_in_segments(rows_CH, index_B)


def gather_in_segments(rows_CH: Tensor, index_B: Tensor) -> Tensor:
    """Return [B, H]; `index_B` is non-decreasing. Gradients are summed in the order of the batch, on every device."""
    gathered: Tensor = _GatherInSegments.apply(rows_CH, index_B)
    return gathered


class _GatherInSegments(torch.autograd.Function):
    """index_select, whose own gradient (index_add_) a GPU adds in another order each time."""

    @staticmethod
    def forward(ctx: Any, rows_CH: Tensor, index_B: Tensor) -> Tensor:
        ctx.save_for_backward(index_B)
        ctx.num_rows = rows_CH.shape[0]
        return rows_CH.index_select(0, index_B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index_B,) = ctx.saved_tensors
        bounds = torch.searchsorted(index_B, torch.arange(ctx.num_rows + 1, device=index_B.device))
        # Trap: without `unsafe` the bounds are compared on the host, which waits for the device.
        return torch.segment_reduce(gradients[0], "sum", offsets=bounds, axis=0, unsafe=True), None
