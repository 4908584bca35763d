"""`towers.split_perceptron` for a CPU, with the backward pass written out. It halves the CPU time of the towers.

It uses two operators of torch that have no public name, `mkldnn._linear_pointwise` and
`aten.threshold_backward.grad_input`. No other file does, and a test fails where a torch release drops one.
"""

# Shapes: B impressions, C contexts, D width of the inputs, H width of a layer, N rows of a matrix.

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.model.precision import widen


class SplitPerceptron(torch.autograd.Function):
    """A whole tower as one node of the autograd graph.

    The context's half is multiplied C times, forwards and backwards. A gradient that no other node reads is overwritten
    in place: a layer's gradient is as large as its output, and memory is what the elementwise steps wait for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        context_CD: Tensor,
        impression_BD: Tensor,
        context_of_impression_B: Tensor,
        masks: list[Tensor],
        *parameters: Tensor,
    ) -> Tensor:
        """Compute what `towers.split_perceptron` computes, from the same arguments."""
        w_context, w_impression, first_bias, *later = (parameter.to(context_CD.dtype) for parameter in parameters)
        from_context_CH = _times(context_CD, w_context, first_bias)
        x_BH = _times_plus(impression_BD, w_impression, from_context_CH.index_select(0, context_of_impression_B))
        inputs = []
        for layer, (weight, bias) in enumerate(zip(later[::2], later[1::2], strict=True)):
            _rectify(x_BH)
            if masks:
                _apply_mask(x_BH, masks[layer])
            inputs.append(x_BH)
            x_BH = _times(x_BH, weight, bias)
        first = (context_CD, impression_BD, context_of_impression_B, w_context, w_impression)
        ctx.save_for_backward(*first, *later[::2], *inputs, *masks)
        ctx.num_later = len(inputs)
        return x_BH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of `forward`."""
        context_CD, impression_BD, index_B, w_context, w_impression, *rest = ctx.saved_tensors
        weights, inputs, masks = (
            rest[start : start + ctx.num_later] for start in (0, ctx.num_later, 2 * ctx.num_later)
        )
        g_BH, later = gradients[0], []
        for layer in reversed(range(ctx.num_later)):
            later += [widen(g_BH.sum(0)), _weight_gradient(g_BH, inputs[layer])]
            g_BH = _times(g_BH, weights[layer].t())
            if masks:
                _apply_mask(g_BH, masks[layer])
            _rectify_gradient(g_BH, inputs[layer])  # what a mask drops is 0 in `inputs` too, and gets no gradient
        g_CH = _sums_by_context(g_BH, index_B, len(context_CD))
        first = (_weight_gradient(g_CH, context_CD), _weight_gradient(g_BH, impression_BD), widen(g_CH.sum(0)))
        return (_times(g_CH, w_context.t()), _times(g_BH, w_impression.t()), None, None, *first, *reversed(later))


def _apply_mask(x: Tensor, mask: Tensor) -> None:
    """Multiply x by `mask` in place, in the mask's precision: mixed precisions take several times as long."""
    x.copy_(widen(x).mul_(mask))


def _sums_by_context(g_BH: Tensor, context_of_impression_B: Tensor, num_contexts: int) -> Tensor:
    """Sum over the impressions of each context, in fp32 or wider: [C, H].

    A context's impressions stand together, so they are a bag. FBGEMM sums bags five times as fast as index_add does.
    """
    first_C = torch.searchsorted(context_of_impression_B, torch.arange(num_contexts))
    return torch.embedding_bag(g_BH, torch.arange(len(g_BH)), first_C)[0]


# ReLU. torch widens each bfloat16 to fp32 and narrows it again, which takes four times as long as the same comparison of
# its 16 bits read as int16: positive numbers are in the same order, and what has the sign bit is below 0.


def _rectify(x: Tensor) -> None:
    """Take max(x, 0) in place. NaN stays NaN; oneDNN's fused ReLU turns it into 0 and so hides it from the trainer."""
    if x.dtype == torch.bfloat16:
        torch.threshold_(x.view(torch.int16), -128, 0)  # -inf is 0xff80, -128; above it are the NaNs with a sign
    else:
        x.relu_()


def _rectify_gradient(g: Tensor, x: Tensor) -> None:
    """Set the gradient g of x = max(·, 0) to 0 wherever x is 0, in place."""
    if g.dtype == torch.bfloat16:
        g, x = g.view(torch.int16), x.view(torch.int16)
    torch.ops.aten.threshold_backward.grad_input(g, x, 0, grad_input=g)


# Matrix products. torch sends fp32 to MKL, which on AMD processors uses half of the machine's vector width; oneDNN,
# which torch ships too, measured 150 GFLOP/s a core where MKL gave 65 to 80 (EPYC with AVX-512).


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and min(*x.shape, *weight.shape) > 1
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·weightᵀ + bias."""
    if _onednn_takes(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def _times_plus(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """Return x·weightᵀ + other, which may be overwritten."""
    if _onednn_takes(x, weight):
        return _times(x, weight).add_(other)  # oneDNN's own fused sum measured a sixth slower
    return other.addmm_(x, weight.t())


def _weight_gradient(g_NH: Tensor, x_ND: Tensor) -> Tensor:
    """Return gᵀ·x, [H, D]; oneDNN is faster when the longer side comes second."""
    if g_NH.shape[1] > x_ND.shape[1]:
        return _weight_gradient(x_ND, g_NH).t().contiguous()
    if _onednn_takes(g_NH, x_ND):
        return _times(g_NH.t(), x_ND.t())
    return widen(g_NH.t() @ x_ND)
