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

from pipeline.manifest import InputError
from training.init_values import dropout_mask


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
        """`key` is None outside training, where nothing is dropped. Inputs in bfloat16 mean products in bfloat16; the
        weights, their gradients and the logit stay as they are."""
        hidden_BH = _SplitLayer.apply(
            context_CD,
            impression_BD,
            context_of_impression_B,
            self.context_weight,
            self.impression_weight,
            self.first_bias,
            len(self.weights) > 0,
        )
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if self.dropout and key is not None:
                what = f"{self.name}/{layer}"
                mask = dropout_mask(key.seed, key.step, what, key.impression_id_B, hidden_BH.shape[1], self.dropout)
                hidden_BH = hidden_BH * mask.to(hidden_BH.dtype)
            hidden_BH = _Layer.apply(hidden_BH, weight, bias, layer + 1 < len(self.weights))
        return hidden_BH.squeeze(1).to(self.first_bias.dtype)


def _parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """Uniform in ±1/√fan_in: torch.nn.Linear's own start."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class _SplitLayer(torch.autograd.Function):
    """act(u[index]·W_uᵀ + i·W_iᵀ + b), written out so that u is multiplied C times, forwards and backwards."""

    @staticmethod
    def forward(
        ctx: Any, u_CD: Tensor, i_BD: Tensor, index_B: Tensor, w_u: Tensor, w_i: Tensor, bias: Tensor, relu: bool
    ) -> Tensor:
        w_u, w_i, bias = (parameter.to(u_CD.dtype) for parameter in (w_u, w_i, bias))
        gathered_BH = _times(u_CD, w_u, bias).index_select(0, index_B)
        out_BH = _times_plus(i_BD, w_i, gathered_BH)
        if relu:
            out_BH.relu_()
        ctx.save_for_backward(u_CD, i_BD, index_B, w_u, w_i, out_BH)
        ctx.relu = relu
        return out_BH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u_CD, i_BD, index_B, w_u, w_i, out_BH = ctx.saved_tensors
        g_BH = torch.ops.aten.threshold_backward(gradients[0], out_BH, 0) if ctx.relu else gradients[0]
        sum_CH = _wide(g_BH).new_zeros(len(u_CD), g_BH.shape[1]).index_add_(0, index_B, _wide(g_BH))
        g_CH = sum_CH.to(g_BH.dtype)
        return (
            _times(g_CH, w_u.t()),
            _times(g_BH, w_i.t()),
            None,
            _wide(g_CH.t() @ u_CD),
            _wide(g_BH.t() @ i_BD),
            sum_CH.sum(0),
            None,
        )


class _Layer(torch.autograd.Function):
    """act(x·Wᵀ + b)."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        weight, bias = weight.to(x_BD.dtype), bias.to(x_BD.dtype)
        out_BH = _times(x_BD, weight, bias)
        if relu:
            out_BH.relu_()  # oneDNN's own fused ReLU turns NaN into 0, and so hides it from the trainer
        ctx.save_for_backward(x_BD, weight, out_BH)
        ctx.relu = relu
        return out_BH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, weight, out_BH = ctx.saved_tensors
        g_BH = torch.ops.aten.threshold_backward(gradients[0], out_BH, 0) if ctx.relu else gradients[0]
        return _times(g_BH, weight.t()), _wide(g_BH.t() @ x_BD), _wide(g_BH).sum(0), None


def _wide(x: Tensor) -> Tensor:
    """In the precision that sums and the weights' gradients are kept in."""
    return x.float() if x.dtype == torch.bfloat16 else x


# Matrix products. torch sends fp32 to MKL, which on AMD processors uses half of the machine's vector width; oneDNN,
# which torch ships too, measured 150 GFLOP/s a core where MKL gave 65 (EPYC with AVX-512). The gradients of weights stay
# with MKL: oneDNN's linear wants both factors transposed in memory first, which costs what it gains.


def _onednn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and min(x.shape) > 1
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias."""
    if _onednn(x) and min(weight.shape) > 1:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def _times_plus(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """x·weightᵀ + other."""
    if _onednn(x) and min(weight.shape) > 1:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")
    return torch.addmm(other, x, weight.t())
