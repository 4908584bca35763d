"""Towers, graph and losses compiled by torch: a few fused kernels, and on a GPU one launch for all of them (a CUDA graph).

What is compiled is the readable code: `StackedTowers` and `losses.loss_sums`. A CUDA graph replays fixed shapes, and the number
of contexts differs from batch to batch; so rows of zeros fill it up to one of a few sizes. No impression reads them.
"""

# Shapes: B impressions, C contexts, D width of the inputs, L layers behind the first one, T towers.

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from training.feed.columns import IMPORTANCE
from training.model.graph import Graph, Query
from training.model.losses import loss_sums
from training.model.stacked_towers import StackedTowers

#: (head → logit [B], label → [B]) → the sum of each loss
LossSums = Callable[[Mapping[Query, Tensor], Mapping[str, Tensor]], Tensor]
_FEWEST_ROWS = 64
_SIZES_AN_OCTAVE = 8
_CONTEXTS, _IMPRESSIONS = 2, 6  # of the trial


class CannotCompile(Exception):
    """Torch cannot compile here; the message is the first line of its reason."""


class CompiledTowers:
    """`StackedTowers`, compiled; called as it is."""

    def __init__(self, network: StackedTowers, device: torch.device) -> None:
        self._network, self._run = network, _compile(network, device)
        self._is_cuda = device.type == "cuda"

    def __call__(
        self,
        context_CD: Tensor,
        impression_BD: Tensor,
        index_B: Tensor,
        impression_id_B: Tensor,
        mask_keys: Tensor | None,
    ) -> Tensor:
        """Return the logits [T, B]."""
        if self._is_cuda:
            # What the step before returned lies in the graph's memory, gradients too, and may be overwritten from here on.
            self._network.zero_grad(set_to_none=True)
            torch.compiler.cudagraph_mark_step_begin()
        context_CD = pad(context_CD, (0, 0, 0, size_of_graph(len(context_CD)) - len(context_CD)))
        return self._run(context_CD, impression_BD, index_B, impression_id_B, mask_keys)


def size_of_graph(num_rows: int) -> int:
    """Return the number of rows to fill up to: at most an eighth more, so that few sizes occur."""
    unit = max(_FEWEST_ROWS, 1 << max(0, num_rows.bit_length() - _SIZES_AN_OCTAVE.bit_length()))
    return -(-num_rows // unit) * unit


def compile_training(
    network: StackedTowers, graph: Graph, widths: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[CompiledTowers, LossSums]:
    """Compile the towers, whose inputs have these `widths`, and the losses of `graph`.

    Raises CannotCompile after a trial, forwards and backwards, of a few rows.
    """
    towers = CompiledTowers(network, device)
    run_loss = _compile(partial(_loss_sums_of_list, graph), device)
    labels = list(dict.fromkeys(graph.label_of(edge.node) for edge in graph.edges))
    labels += [IMPORTANCE] if any(loss.kind == IMPORTANCE for loss in graph.losses) else []

    def sums(logit_of: Mapping[Query, Tensor], label_of: Mapping[str, Tensor]) -> Tensor:
        return run_loss([logit_of[head] for head in graph.heads], {name: label_of[name] for name in labels})

    def try_sums(logits: Tensor) -> Tensor:
        ones = torch.ones(logits.shape[1], device=device)
        return sums(dict(zip(graph.heads, logits.unbind(0), strict=True)), dict.fromkeys(labels, ones))

    try:
        _try(towers, network, try_sums, widths, dtype, device)
    except Exception as error:  # whatever a compiler and its tools raise
        raise CannotCompile((str(error).strip().splitlines() or [type(error).__name__])[0][:200]) from error
    return towers, sums


def _loss_sums_of_list(graph: Graph, logits: list[Tensor], label_of: dict[str, Tensor]) -> Tensor:
    return loss_sums(graph, dict(zip(graph.heads, logits, strict=True)), label_of)


def _compile(function: Callable[..., Tensor] | nn.Module, device: torch.device) -> Callable[..., Tensor]:
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    compiled: Callable[..., Tensor] = torch.compile(function, dynamic=True, fullgraph=True, mode=mode)
    return compiled


def _try(
    towers: CompiledTowers,
    network: StackedTowers,
    sums: Callable[[Tensor], Tensor],
    widths: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Take a few rows forwards and backwards; no gradient is kept."""
    copies = len(network.towers) if network.has_own_inputs else 1
    inputs = [
        torch.zeros((rows, copies * width), dtype=dtype, device=device, requires_grad=True)
        for rows, width in zip((_CONTEXTS, _IMPRESSIONS), widths, strict=True)
    ]
    index_B = torch.arange(_IMPRESSIONS, device=device) // (_IMPRESSIONS // _CONTEXTS)
    ids_B = torch.arange(_IMPRESSIONS, device=device)
    shape = (len(network.widths), len(network.towers))
    keys = torch.zeros(shape, dtype=torch.int64, device=device) if network.dropout and network.widths else None
    context_CD, impression_BD = inputs
    logits = towers(context_CD, impression_BD, index_B, ids_B, keys)
    total = sums(logits).sum()
    torch.autograd.grad(total, [*inputs, *network.parameters()])
