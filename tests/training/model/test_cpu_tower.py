"""The CPU's tower computes what the readable one computes; the private operators that it needs are there."""

import itertools

import pytest
import torch
from torch import Tensor

from training.model.cpu_tower import SplitPerceptron, _onednn_takes, _rectify, _rectify_gradient
from training.model.dropout_masks import dropout_mask
from training.model.towers import split_perceptron

C, B = 30, 400


def parameters_of(hidden: list[int], dtype: torch.dtype) -> list[Tensor]:
    """The weights and biases of a tower of 12 + 9 inputs."""
    widths = [*hidden, 1]
    shapes = [(widths[0], 12), (widths[0], 9), (widths[0],)]
    for narrow, wide in itertools.pairwise(widths):
        shapes += [(wide, narrow), (wide,)]
    return [(torch.randn(shape, dtype=dtype) / 3).requires_grad_() for shape in shapes]


def both(
    hidden: list[int], dtype: torch.dtype, weight_dtype: torch.dtype, dropout: float
) -> tuple[list[Tensor], list[Tensor]]:
    """The logits and all gradients of both, from the same inputs."""
    torch.manual_seed(1)
    index_B = torch.sort(torch.randint(0, C - 1, (B,))).values  # the last context has no impression
    parameters = parameters_of(hidden, weight_dtype)
    masks = [dropout_mask(1, 2, str(n), torch.arange(B), width, dropout) for n, width in enumerate(hidden) if dropout]
    inputs = [torch.randn(C, 12, dtype=dtype), torch.randn(B, 9, dtype=dtype)]
    target_B = torch.randn(B, dtype=torch.float64)
    found = []
    for perceptron in (SplitPerceptron.apply, split_perceptron):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (*inputs, *parameters)]
        logit_B1 = perceptron(*leaves[:2], index_B, masks, *leaves[2:])
        (logit_B1.squeeze(1).double() - target_B).square().sum().backward()
        gradients = [leaf.grad for leaf in leaves]
        found.append([logit_B1.detach(), *(gradient for gradient in gradients if gradient is not None)])
        assert len(found[-1]) == 1 + len(leaves)
    return found[0], found[1]


@pytest.mark.parametrize("hidden", [[], [1], [64], [48, 32], [40, 24, 16]])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_the_cpus_tower_and_its_gradients_equal_the_readable_one(
    hidden: list[int], dropout: float, dtype: torch.dtype, tolerance: float
) -> None:
    fast, plain = both(hidden, dtype, dtype, dropout)
    for mine, theirs in zip(fast, plain, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("hidden", [[], [48, 32]])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_in_bfloat16_the_two_agree_to_its_rounding(hidden: list[int], dropout: float) -> None:
    fast, plain = both(hidden, torch.bfloat16, torch.float32, dropout)
    for mine, theirs in zip(fast, plain, strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.float() - theirs.float()).norm() < 0.05 * theirs.float().norm()  # units near 0 differ in sign


def test_torch_still_has_the_private_operators_and_onednn_takes_our_matrices() -> None:
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise"), "without it, _times falls back to MKL: half the speed on AMD"
    assert hasattr(torch.ops.aten.threshold_backward, "grad_input"), "_rectify_gradient needs it"
    x, weight, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    if torch.backends.mkldnn.is_available():
        assert _onednn_takes(x, weight)
        product = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        torch.testing.assert_close(product, x @ weight.t() + bias)


def test_relu_of_every_bfloat16_is_torchs_and_passes_the_gradient_where_torch_does() -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    mine, theirs = every.clone(), every.relu()
    _rectify(mine)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    assert mine.isnan().equal(every.isnan())
    mine = mine[~mine.isnan()]
    gradient = torch.linspace(-1, 1, len(mine)).bfloat16()
    expected = torch.where(mine > 0, gradient, 0.0)
    _rectify_gradient(gradient, mine)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
