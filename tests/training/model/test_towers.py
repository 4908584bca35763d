import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from training.model.dropout_masks import dropout_mask
from training.model.settings import TowerSettings
from training.model.towers import DropoutKey, Tower

C, B = 4, 7
INDEX = torch.tensor([0, 0, 1, 1, 1, 3, 3])  # context 2 has no impression


def unsplit(tower: Tower) -> nn.Sequential:
    """The same network as torch would write it, on [u; i] of every impression."""
    layers: list[nn.Module] = []
    pairs = [(torch.cat([tower.context_weight, tower.impression_weight], 1), tower.first_bias)]
    for number, (weight, bias) in enumerate([*pairs, *zip(tower.weights, tower.biases, strict=True)]):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        linear.weight.data, linear.bias.data = weight.detach().clone(), bias.detach().clone()
        layers += [nn.ReLU(), linear] if number else [linear]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("hidden", [[], [4], [6, 5], [6, 5, 3]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_split_first_layer_equals_the_unsplit_one(hidden: list[int], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    tower = Tower("t", 5, 4, TowerSettings(hidden)).to(dtype)
    reference = unsplit(tower)
    u, i = torch.randn(C, 5, dtype=dtype, requires_grad=True), torch.randn(B, 4, dtype=dtype, requires_grad=True)
    u2, i2 = u.detach().clone().requires_grad_(), i.detach().clone().requires_grad_()
    z, z2 = tower(u, i, INDEX, None), reference(torch.cat([u2[INDEX], i2], 1)).squeeze(1)
    torch.testing.assert_close(z, z2, rtol=tolerance, atol=tolerance)
    z.square().sum().backward()
    z2.square().sum().backward()
    linears = [layer for layer in reference if isinstance(layer, nn.Linear)]
    assert tower.context_weight.grad is not None
    pairs = [
        (u.grad, u2.grad),
        (i.grad, i2.grad),
        (torch.cat([tower.context_weight.grad, tower.impression_weight.grad], 1), linears[0].weight.grad),
        (tower.first_bias.grad, linears[0].bias.grad),
    ]
    pairs += [(mine.grad, theirs.weight.grad) for mine, theirs in zip(tower.weights, linears[1:], strict=True)]
    pairs += [(mine.grad, theirs.bias.grad) for mine, theirs in zip(tower.biases, linears[1:], strict=True)]
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=10 * tolerance, atol=10 * tolerance)


def test_a_tower_starts_like_torchs_linear_layers() -> None:
    tower = Tower("t", 300, 100, TowerSettings([50]))
    assert tower.context_weight.abs().max().item() == pytest.approx(1 / 20, rel=0.01)  # 1/√(300 + 100)
    assert tower.weights[0].abs().max().item() == pytest.approx(1 / 50**0.5, rel=0.2)


def test_dropout_follows_the_impression_and_is_off_outside_training() -> None:
    torch.manual_seed(1)
    tower = Tower("t", 5, 4, TowerSettings([64, 32], dropout=0.5))
    u, i, ids = torch.randn(C, 5), torch.randn(B, 4), torch.arange(B)
    whole = tower(u, i, INDEX, DropoutKey(1, 3, ids))
    later = tower(u, i[3:], INDEX[3:], DropoutKey(1, 3, ids[3:]))
    torch.testing.assert_close(whole[3:], later)
    assert not torch.allclose(whole, tower(u, i, INDEX, DropoutKey(1, 4, ids)))
    torch.testing.assert_close(tower(u, i, INDEX, None), unsplit(tower)(torch.cat([u[INDEX], i], 1)).squeeze(1))


def test_what_dropout_drops_gets_no_gradient_and_the_rest_gets_torchs() -> None:
    torch.manual_seed(1)
    tower = Tower("t", 5, 4, TowerSettings([16, 8], dropout=0.4)).double()
    u, i = torch.randn(C, 5, dtype=torch.float64), torch.randn(B, 4, dtype=torch.float64)
    key = DropoutKey(1, 3, torch.arange(B))
    tower(u, i, INDEX, key).square().sum().backward()
    reference = unsplit(tower)
    x = torch.cat([u[INDEX], i], 1)
    for layer, width in enumerate((16, 8)):
        mask = dropout_mask(1, 3, f"t/{layer}", key.impression_id_B, width, 0.4).double()
        x = reference[2 * layer](x).relu() * mask
    reference[4](x).square().sum().backward()
    for number, weight in enumerate(tower.weights):
        torch.testing.assert_close(weight.grad, reference[2 * number + 2].weight.grad)
    assert tower.impression_weight.grad is not None
    torch.testing.assert_close(tower.impression_weight.grad, reference[0].weight.grad[:, 5:])


@pytest.mark.parametrize(("hidden", "dropout"), [([0], 0.0), ([4], 1.0), ([4], -0.1)])
def test_impossible_towers_are_refused(hidden: list[int], dropout: float) -> None:
    with pytest.raises(InputError, match=r"model\.towers"):
        TowerSettings(hidden, dropout)


def test_bf16_products_keep_weights_gradients_and_logits_in_fp32_and_stay_near_them() -> None:
    torch.manual_seed(1)
    tower = Tower("t", 40, 30, TowerSettings([64, 32]))
    u, i, index = torch.randn(20, 40), torch.randn(200, 30), torch.arange(200) // 10
    found: dict[torch.dtype, list[torch.Tensor | None]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        tower.zero_grad()
        inputs = [u.clone().requires_grad_(), i.clone().requires_grad_()]
        logit = tower(inputs[0].to(dtype), inputs[1].to(dtype), index, None)
        assert logit.dtype == torch.float32
        logit.sigmoid().sum().backward()
        found[dtype] = [logit.detach(), *(x.grad for x in inputs), *(weight.grad for weight in tower.parameters())]
    for exact, rounded in zip(found[torch.float32], found[torch.bfloat16], strict=True):
        assert exact is not None
        assert rounded is not None
        assert rounded.dtype == torch.float32
        # units near 0 pass their gradient on in one precision and not in the other
        assert (rounded - exact).norm() < 0.08 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
@pytest.mark.parametrize("scope", ["context", "impression"])
def test_nan_in_an_input_reaches_the_logits_of_its_impressions(dtype: torch.dtype, nan: float, scope: str) -> None:
    tower = Tower("t", 5, 4, TowerSettings([6, 5]))
    u, i = torch.randn(C, 5).to(dtype), torch.randn(B, 4).to(dtype)
    (u if scope == "context" else i)[1, 2] = nan
    of_it = INDEX == 1 if scope == "context" else torch.arange(B) == 1
    assert tower(u, i, INDEX, None).isnan().equal(of_it)


def test_sums_over_a_context_of_many_impressions_do_not_lose_the_small_ones_in_bf16() -> None:
    tower = Tower("t", 1, 1, TowerSettings([4]))
    u = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    i = torch.ones(5000, 1, dtype=torch.bfloat16)
    tower(u, i, torch.zeros(5000, dtype=torch.int64), None).sum().backward()
    one = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    tower(one, i[:1], torch.zeros(1, dtype=torch.int64), None).sum().backward()
    assert u.grad is not None
    assert one.grad is not None
    assert u.grad.item() == pytest.approx(5000 * one.grad.item(), rel=0.01)  # a sum kept in bf16 would stop at 256
