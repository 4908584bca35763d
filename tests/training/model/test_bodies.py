"""Each body computes the equations of its paper, read again in NumPy; what does not fit is refused."""

import numpy as np
import pytest
import torch
from graphs import ESMM, LABELS
from torch import nn

from pipeline.errors import InputError
from training.model.bodies import AITM, PLE, MMoE, SharedBottom, check_body
from training.model.graph import Graph
from training.model.settings import GraphSettings, ModelSettings, TowerSettings
from training.model.towers import DropoutKey, TowerStack

HEADS = Graph(ESMM, LABELS).heads
C, B = 4, 7
INDEX = torch.tensor([0, 0, 1, 1, 1, 3, 3])


def inputs() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Context [C, 5], impression [B, 3], and [u; i] of every impression."""
    torch.manual_seed(1)
    u, i = torch.randn(C, 5), torch.randn(B, 3)
    return u, i, torch.cat([u[INDEX], i], 1).numpy()


def numpy_of(body: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in body.named_parameters()}


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def expert(p: dict[str, np.ndarray], prefix: str, x: np.ndarray) -> np.ndarray:
    """ReLU of an affine map, twice."""
    x = np.maximum(x @ p[f"{prefix}.first.weight"].T + p[f"{prefix}.first.bias"], 0)
    return np.maximum(x @ p[f"{prefix}.later.0.weight"].T + p[f"{prefix}.later.0.bias"], 0)


def test_shared_bottom_is_one_perceptron_for_all_heads() -> None:
    u, i, x = inputs()
    body = SharedBottom(HEADS, 5, 3, hidden=[6, 4])
    for found in body(u, i, INDEX).values():
        np.testing.assert_allclose(found.detach().numpy(), expert(numpy_of(body), "bottom", x), atol=1e-6)


def test_mmoe_weighs_the_experts_by_each_heads_softmax() -> None:
    u, i, x = inputs()
    body = MMoE(HEADS, 5, 3, experts=3, hidden=[6, 4])
    p, found = numpy_of(body), body(u, i, INDEX)
    for number, head in enumerate(HEADS):
        gate = softmax(x @ p[f"gates.{number}.weight"].T)
        expected = sum(gate[:, [k]] * expert(p, f"experts.{k}", x) for k in range(3))
        np.testing.assert_allclose(found[head].detach().numpy(), expected, atol=1e-6)


def test_ple_mixes_own_and_shared_experts_layer_by_layer() -> None:
    u, i, x = inputs()
    body = PLE(HEADS, 5, 3, experts=2, shared_experts=1, layers=2, hidden=[6, 4])
    p, found = numpy_of(body), body(u, i, INDEX)
    of_head, of_shared = [x, x], x
    for layer in range(2):
        own = [[expert(p, f"layers.{layer}.own.{t}.{k}", of_head[t]) for k in range(2)] for t in range(2)]
        shared = [expert(p, f"layers.{layer}.shared.0", of_shared)]
        gates = [softmax(of_head[t] @ p[f"layers.{layer}.gates.{t}.weight"].T) for t in range(2)]
        mixtures = [sum(gates[t][:, [k]] * out for k, out in enumerate([*own[t], *shared])) for t in range(2)]
        if layer == 0:
            gate = softmax(of_shared @ p["layers.0.shared_gate.weight"].T)
            of_shared = sum(gate[:, [k]] * out for k, out in enumerate([*own[0], *own[1], *shared]))
        of_head = mixtures
    assert "layers.1.shared_gate.weight" not in p  # nothing would train it
    for head, expected in zip(HEADS, of_head, strict=True):
        np.testing.assert_allclose(found[head].detach().numpy(), expected, atol=1e-6)


def affine(p: dict[str, np.ndarray], prefix: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{prefix}.weight"].T + p[f"{prefix}.bias"]


def test_aitm_attends_to_what_the_step_before_hands_over_and_to_its_own_features() -> None:
    u, i, x = inputs()
    edges = ["click | impression", "daction | impression", "conversion | impression"]
    heads = Graph(GraphSettings(edges, ["click", "daction", "conversion"], {"p": "click"}), LABELS).heads
    body = AITM(heads, 5, 3, hidden=[6, 4])
    p, found = numpy_of(body), body(u, i, INDEX)
    z = expert(p, "own.0", x)
    np.testing.assert_allclose(found[heads[0]].detach().numpy(), z, atol=1e-6)
    for step in (1, 2):
        name = f"transfers.{step - 1}"
        pair = [affine(p, f"{name}.hand_over", z), expert(p, f"own.{step}", x)]
        score = np.stack(
            [(affine(p, f"{name}.key", u_) * affine(p, f"{name}.query", u_)).sum(1) / 2.0 for u_ in pair], 1
        )
        weight = softmax(score)  # √4 = 2
        z = sum(weight[:, [k]] * affine(p, f"{name}.value", u_) for k, u_ in enumerate(pair))
        np.testing.assert_allclose(found[heads[step]].detach().numpy(), z, atol=1e-6)


BODIES = [
    {"kind": "shared_bottom", "hidden": [6, 4]},
    {"kind": "mmoe", "experts": 3, "hidden": [6, 4]},
    {"kind": "ple", "experts": 2, "shared_experts": 1, "layers": 2, "hidden": [4]},
    {"kind": "aitm", "hidden": [6, 4]},
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body["kind"])
def test_every_parameter_of_a_body_gets_a_gradient_and_bf16_stays_near_fp32(body: dict[str, object]) -> None:
    u, i, _ = inputs()
    stack = TowerStack(HEADS, 5, 3, ModelSettings(towers=TowerSettings([5]), body=body))
    exact = torch.stack(list(stack(u, i, INDEX, None).values()))
    exact.square().sum().backward()
    assert all(parameter.grad is not None for parameter in stack.parameters())
    rounded = torch.stack(list(stack(u.bfloat16(), i.bfloat16(), INDEX, None).values()))
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_dropout_above_a_body_follows_the_impression() -> None:
    u, i, _ = inputs()
    stack = TowerStack(HEADS, 5, 3, ModelSettings(towers=TowerSettings([64], dropout=0.5), body=BODIES[0]))
    ids = torch.arange(B)
    whole, later = stack(u, i, INDEX, DropoutKey(1, 3, ids)), stack(u, i[3:], INDEX[3:], DropoutKey(1, 3, ids[3:]))
    for head in HEADS:
        torch.testing.assert_close(whole[head][3:], later[head])
        assert not torch.allclose(whole[head], stack(u, i, INDEX, None)[head])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"kind": "mmou"}, "model.body.kind=mmou is not one of towers, shared_bottom, mmoe, ple, aitm"),
        ({"kind": "towers", "experts": 2}, "takes no options"),
        ({"kind": "mmoe", "hidden": [4]}, "the option experts is missing"),
        ({"kind": "mmoe", "hidden": [4], "experts": 0}, "experts=0 is not a whole number above 0"),
        ({"kind": "mmoe", "hidden": [], "experts": 2}, "is not a list of widths"),
        ({"kind": "mmoe", "hidden": [0], "experts": 2}, "is not a whole number above 0"),
        ({"kind": "shared_bottom", "hidden": [4], "experts": 2}, "experts is not an option; it takes hidden"),
    ],
)
def test_a_body_that_does_not_fit_its_kind_is_refused(body: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        check_body(body, Graph(ESMM, LABELS))
    assert message in str(refused.value)
