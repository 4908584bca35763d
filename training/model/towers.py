"""Towers: one multilayer perceptron per edge of the behaviour graph, its first layer split by scope.

W·[u; i] = W_u·u + W_i·i, so the context's half is multiplied once per context and gathered to its impressions; with
58 impressions a context and 13 of 23 fields in it, that saves half of the first layer.
"""

# Shapes: B impressions, C contexts, D width of the inputs, H width of a layer.

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.errors import InputError
from training.model.counter_random import dropout_mask


@dataclass
class TowerSettings:
    """The group `model.towers`."""

    hidden: list[int] = field(default_factory=lambda: [200, 80])  # empty: one linear layer
    dropout: float = 0.0  # after each hidden layer

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise InputError(f"model.towers.hidden={self.hidden} has a layer narrower than 1.")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"model.towers.dropout={self.dropout} is outside [0, 1).")


@dataclass(frozen=True)
class DropoutKey:
    """What a training step's dropout masks depend on."""

    seed: int
    step: int
    impression_id_B: Tensor


class Tower(nn.Module):
    """context [C, D_context] and impression [B, D_impression] → logit [B]."""

    def __init__(self, name: str, context_width: int, impression_width: int, settings: TowerSettings) -> None:
        super().__init__()
        self.name, self.dropout = name, settings.dropout
        widths = [*settings.hidden, 1]
        first_width = context_width + impression_width
        self.context_weight = _parameter(widths[0], context_width, fan_in=first_width)
        self.impression_weight = _parameter(widths[0], impression_width, fan_in=first_width)
        self.first_bias = _parameter(widths[0], fan_in=first_width)
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList([_parameter(wide, narrow, fan_in=narrow) for narrow, wide in pairs])
        self.biases = nn.ParameterList([_parameter(wide, fan_in=narrow) for narrow, wide in pairs])

    def forward(
        self, context_CD: Tensor, impression_BD: Tensor, context_of_impression_B: Tensor, key: DropoutKey | None
    ) -> Tensor:
        """`context_of_impression_B` never falls. `key` is None outside training, where nothing is dropped. Inputs in
        bfloat16 mean products in bfloat16; the weights, their gradients and the logit stay as they are."""
        masks = []
        if self.dropout and key is not None:
            masks = [self._mask(layer, weight.shape[1], key) for layer, weight in enumerate(self.weights)]
        first = (self.context_weight, self.impression_weight, self.first_bias)
        later = itertools.chain(*zip(self.weights, self.biases, strict=True))
        logit_B1 = _Perceptron.apply(context_CD, impression_BD, context_of_impression_B, masks, *first, *later)
        return logit_B1.squeeze(1).to(self.first_bias.dtype)

    def _mask(self, layer: int, width: int, key: DropoutKey) -> Tensor:
        what = f"{self.name}/{layer}"
        return dropout_mask(key.seed, key.step, what, key.impression_id_B, width, self.dropout)


def _parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """Uniform in ±1/√fan_in: torch.nn.Linear's own start."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class _Perceptron(torch.autograd.Function):
    """The whole tower: act(u[index]·W_uᵀ + i·W_iᵀ + b), then act(x·Wᵀ + b) for each later layer; the last has no act.

    Written out so that u is multiplied C times, forwards and backwards, and so that a gradient which nobody else sees
    is overwritten in place: a layer's is as large as its output, and memory is what the elementwise steps wait for.
    """

    @staticmethod
    def forward(
        ctx: Any, u_CD: Tensor, i_BD: Tensor, index_B: Tensor, masks: list[Tensor], *parameters: Tensor
    ) -> Tensor:
        """`masks` scale the input of each later layer; none of them: no dropout."""
        w_u, w_i, first_bias, *later = (parameter.to(u_CD.dtype) for parameter in parameters)
        x_BH = _times_plus(i_BD, w_i, _times(u_CD, w_u, first_bias).index_select(0, index_B))
        inputs = []
        for layer, (weight, bias) in enumerate(zip(later[::2], later[1::2], strict=True)):
            _rectify(x_BH)
            if masks:
                _drop(x_BH, masks[layer])
            inputs.append(x_BH)
            x_BH = _times(x_BH, weight, bias)
        ctx.save_for_backward(u_CD, i_BD, index_B, w_u, w_i, *later[::2], *inputs, *masks)
        ctx.num_later = len(inputs)
        return x_BH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u_CD, i_BD, index_B, w_u, w_i, *rest = ctx.saved_tensors
        weights, inputs, masks = (
            rest[start : start + ctx.num_later] for start in (0, ctx.num_later, 2 * ctx.num_later)
        )
        g_BH, later = gradients[0], []
        for layer in reversed(range(ctx.num_later)):
            later += [_wide(g_BH.sum(0)), _weight_gradient(g_BH, inputs[layer])]
            g_BH = _times(g_BH, weights[layer].t())
            if masks:
                _drop(g_BH, masks[layer])
            _rectify_gradient(g_BH, inputs[layer])  # what a mask drops is 0 in `inputs` too, and gets no gradient
        g_CH = _sums_by_context(g_BH, index_B, len(u_CD))
        first = (_weight_gradient(g_CH, u_CD), _weight_gradient(g_BH, i_BD), _wide(g_CH.sum(0)))
        return (_times(g_CH, w_u.t()), _times(g_BH, w_i.t()), None, None, *first, *reversed(later))


def _wide(x: Tensor) -> Tensor:
    """In the precision that the weights' gradients are kept in."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _drop(x: Tensor, mask: Tensor) -> None:
    """x *= mask in place, with the mask's precision; a product of mixed precisions takes torch several times as long."""
    x.copy_(_wide(x).mul_(mask))


def _sums_by_context(g_BH: Tensor, index_B: Tensor, num_contexts: int) -> Tensor:
    """[C, H]: the sum over the impressions of each context, taken in fp32 or wider."""
    if g_BH.device.type == "cpu":
        # A context's impressions stand together: they are a bag, and FBGEMM sums bags five times as fast as index_add.
        first_C = torch.searchsorted(index_B, torch.arange(num_contexts))
        return torch.embedding_bag(g_BH, torch.arange(len(g_BH)), first_C)[0]
    wide_BH = _wide(g_BH)
    return wide_BH.new_zeros(num_contexts, wide_BH.shape[1]).index_add_(0, index_B, wide_BH).to(g_BH.dtype)


# ReLU. torch widens each bfloat16 to fp32 and narrows it again, which takes four times as long as the same comparison of
# its 16 bits read as int16: positive numbers are in the same order, and what has the sign bit is below 0.


def _as_int16(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def _rectify(x: Tensor) -> None:
    """max(x, 0) in place. NaN stays NaN; oneDNN's own fused ReLU turns it into 0, and so hides it from the trainer."""
    if _as_int16(x):
        torch.threshold_(x.view(torch.int16), -128, 0)  # -inf is 0xff80, -128; above it are the NaNs with a sign
    else:
        x.relu_()


def _rectify_gradient(g: Tensor, x: Tensor) -> None:
    """0 in place of the gradient g of x = max(·, 0) wherever x is 0."""
    if _as_int16(g):
        g, x = g.view(torch.int16), x.view(torch.int16)
    torch.ops.aten.threshold_backward.grad_input(g, x, 0, grad_input=g)


# Matrix products. torch sends fp32 to MKL, which on AMD processors uses half of the machine's vector width; oneDNN,
# which torch ships too, measured 150 GFLOP/s a core where MKL gave 65 to 80 (EPYC with AVX-512).


def _onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and min(*x.shape, *weight.shape) > 1
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias."""
    if _onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def _times_plus(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """x·weightᵀ + other, which it may overwrite."""
    if _onednn(x, weight):
        return _times(x, weight).add_(other)  # oneDNN's own fused sum measured a sixth slower
    return other.addmm_(x, weight.t())


def _weight_gradient(g_NH: Tensor, x_ND: Tensor) -> Tensor:
    """gᵀ·x, [H, D]; oneDNN is faster when the longer side comes second."""
    if g_NH.shape[1] > x_ND.shape[1]:
        return _weight_gradient(x_ND, g_NH).t().contiguous()
    if _onednn(g_NH, x_ND):
        return _times(g_NH.t(), x_ND.t())
    return _wide(g_NH.t() @ x_ND)
