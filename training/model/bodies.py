"""Bodies: what the heads share between the inputs and their towers, found by `model.body.kind` in `BODIES`.

    kind: towers          nothing is shared: each head's tower reads the inputs themselves (ESMM, ESM²)
    kind: shared_bottom   one perceptron for all heads
    kind: mmoe            experts for all heads, and a gate for each head
    kind: ple             experts for all heads, experts for each head, gates, in several layers
    kind: aitm            a perceptron for each head, and what the head before it hands over

A body of your own is an nn.Module and a line in `BODIES`. Its constructor takes the heads, the widths of both scopes and
its options by keyword; `width` is that of its outputs. docs/models.md has an example.
"""

# Shapes: B impressions, C contexts, D width of the inputs, H width of a layer.

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pipeline.errors import InputError
from training.model.gather_contexts import gather_contexts
from training.model.graph import Graph, Query
from training.model.options import check_options
from training.model.precision import widen


class SplitLinear(nn.Linear):
    """W·[u; i] (+ b), multiplied as W_u·u for each context and W_i·i for each impression."""

    def __init__(self, context_width: int, impression_width: int, width: int, bias: bool = True) -> None:
        super().__init__(context_width + impression_width, width, bias)
        self.context_width = context_width

    def forward(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor) -> Tensor:  # type: ignore[override]
        """Return [B, H]; `index_B` is the context of each impression."""
        from_context_CH = linear(context_CD, self.weight[:, : self.context_width], self.bias)
        from_context_BH = gather_contexts(widen(from_context_CH), index_B)
        return from_context_BH + linear(impression_BD, self.weight[:, self.context_width :])


class Expert(nn.Module):
    """A perceptron with ReLU after each layer; `first` makes its first layer."""

    def __init__(self, first: Callable[[int], nn.Module], hidden: Sequence[int]) -> None:
        super().__init__()
        self.first = first(hidden[0])
        self.later = nn.ModuleList([nn.Linear(narrow, wide) for narrow, wide in itertools.pairwise(hidden)])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return [B, hidden[-1]] of what the first layer takes."""
        x_BH = self.first(*inputs).relu()
        for layer in self.later:
            x_BH = layer(x_BH).relu()
        return x_BH


def mixture(gate_logits: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Return Σ softmax(gate)_k · output_k, [B, H], from gate logits [B, K] and K outputs [B, H]."""
    return (gate_logits.softmax(1).unsqueeze(2) * torch.stack(list(outputs), 1)).sum(1)


class SharedBottom(nn.Module):
    """One perceptron below all heads (Caruana, Multitask Learning, 1997; Ma et al., KDD 2018, eq. 1)."""

    def __init__(self, heads: Sequence[Query], context_width: int, impression_width: int, *, hidden: list[int]) -> None:
        super().__init__()
        self.heads, self.width = tuple(heads), hidden[-1]
        self.bottom = Expert(partial(SplitLinear, context_width, impression_width), hidden)

    def forward(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor) -> dict[Query, Tensor]:
        """Return head → [B, H], the same for all."""
        x_BH = self.bottom(context_CD, impression_BD, index_B)
        return dict.fromkeys(self.heads, x_BH)


class MMoE(nn.Module):
    """Multi-gate mixture of experts: f^k(x) = Σ_i softmax(W_gk·x)_i · f_i(x) for head k (Ma et al., KDD 2018)."""

    def __init__(
        self, heads: Sequence[Query], context_width: int, impression_width: int, *, experts: int, hidden: list[int]
    ) -> None:
        super().__init__()
        self.heads, self.width = tuple(heads), hidden[-1]
        first = partial(SplitLinear, context_width, impression_width)
        self.experts = nn.ModuleList([Expert(first, hidden) for _ in range(experts)])
        self.gates = nn.ModuleList([first(experts, bias=False) for _ in heads])

    def forward(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor) -> dict[Query, Tensor]:
        """Return head → [B, H]."""
        inputs = (context_CD, impression_BD, index_B)
        outputs = [expert(*inputs) for expert in self.experts]
        return {head: mixture(gate(*inputs), outputs) for head, gate in zip(self.heads, self.gates, strict=True)}


class Extraction(nn.Module):
    """One layer of PLE. Each head's gate mixes its own experts and the shared ones; the shared gate mixes them all."""

    def __init__(
        self, first: Callable[..., nn.Module], num_heads: int, experts: int, shared: int, hidden: list[int], last: bool
    ) -> None:
        super().__init__()
        self.own = nn.ModuleList(
            [nn.ModuleList([Expert(first, hidden) for _ in range(experts)]) for _ in range(num_heads)]
        )
        self.shared = nn.ModuleList([Expert(first, hidden) for _ in range(shared)])
        self.gates = nn.ModuleList([first(experts + shared, bias=False) for _ in range(num_heads)])
        self.shared_gate = None if last else first(num_heads * experts + shared, bias=False)

    def forward(
        self, inputs: Sequence[tuple[Tensor, ...]], shared_inputs: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the mixture of each head, and the shared one unless the layer is the last; each is [B, H]."""
        shared = [expert(*shared_inputs) for expert in self.shared]
        own = [
            [expert(*of_head) for expert in experts]  # type: ignore[attr-defined]
            for of_head, experts in zip(inputs, self.own, strict=True)
        ]
        mixtures = [
            mixture(gate(*of_head), [*outputs, *shared])
            for of_head, gate, outputs in zip(inputs, self.gates, own, strict=True)
        ]
        if self.shared_gate is None:
            return mixtures, None
        return mixtures, mixture(self.shared_gate(*shared_inputs), [*itertools.chain(*own), *shared])


class PLE(nn.Module):
    """Progressive layered extraction (Tang et al., RecSys 2020): `layers` of `Extraction`, one alone is their CGC."""

    def __init__(
        self,
        heads: Sequence[Query],
        context_width: int,
        impression_width: int,
        *,
        experts: int,
        shared_experts: int,
        layers: int,
        hidden: list[int],
    ) -> None:
        super().__init__()
        self.heads, self.width = tuple(heads), hidden[-1]
        outer: Callable[..., nn.Module] = partial(SplitLinear, context_width, impression_width)
        inner: Callable[..., nn.Module] = partial(nn.Linear, hidden[-1])
        self.layers = nn.ModuleList(
            [
                Extraction(inner if layer else outer, len(heads), experts, shared_experts, hidden, layer + 1 == layers)
                for layer in range(layers)
            ]
        )

    def forward(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor) -> dict[Query, Tensor]:
        """Return head → [B, H]."""
        shared_inputs: tuple[Tensor, ...] = (context_CD, impression_BD, index_B)
        inputs = [shared_inputs] * len(self.heads)
        mixtures: list[Tensor] = []
        for layer in self.layers:
            mixtures, shared = layer(inputs, shared_inputs)
            inputs = [(mixture,) for mixture in mixtures]
            shared_inputs = () if shared is None else (shared,)
        return dict(zip(self.heads, mixtures, strict=True))


class Transfer(nn.Module):
    """AITM's information transfer: attention over what the head before hands over (p) and the head's own features (q).

    Σ w_u·h_1(u) over u in {p, q}; w is the softmax of ⟨h_2(u), h_3(u)⟩ / √width, and p is an affine map of the head before.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hand_over = nn.Linear(width, width)
        self.value, self.key, self.query = (nn.Linear(width, width) for _ in range(3))
        self.scale = math.sqrt(width)

    def forward(self, before_BH: Tensor, own_BH: Tensor) -> Tensor:
        """Return [B, H]."""
        pair = torch.stack([self.hand_over(before_BH), own_BH], 1)  # [B, 2, H]
        score = (self.key(pair) * self.query(pair)).sum(2) / self.scale
        return (score.softmax(1).unsqueeze(2) * self.value(pair)).sum(1)


class AITM(nn.Module):
    """Adaptive information transfer (Xi et al., KDD 2021): z_1 = q_1, z_t = Transfer(z_{t-1}, q_t), in the order of the heads.

    q_t is a perceptron of head t; the heads are the steps of the funnel, the first one first.
    """

    def __init__(self, heads: Sequence[Query], context_width: int, impression_width: int, *, hidden: list[int]) -> None:
        super().__init__()
        self.heads, self.width = tuple(heads), hidden[-1]
        first = partial(SplitLinear, context_width, impression_width)
        self.own = nn.ModuleList([Expert(first, hidden) for _ in heads])
        self.transfers = nn.ModuleList([Transfer(self.width) for _ in heads[1:]])

    def forward(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor) -> dict[Query, Tensor]:
        """Return head → [B, H]."""
        own = [perceptron(context_CD, impression_BD, index_B) for perceptron in self.own]
        steps = own[:1]
        for transfer, own_BH in zip(self.transfers, own[1:], strict=True):
            steps.append(transfer(steps[-1], own_BH))
        return dict(zip(self.heads, steps, strict=True))


#: Without a body, each head has a tower of its own from the inputs on.
NO_BODY = "towers"
#: kind → module; forward takes context [C, D], impression [B, D] and index [B], and returns head → [B, H]
BODIES: dict[str, Callable[..., nn.Module]] = {"shared_bottom": SharedBottom, "mmoe": MMoE, "ple": PLE, "aitm": AITM}


def check_body(settings: Mapping[str, Any], graph: Graph) -> None:
    """Raise InputError where `model.body` has an unknown kind, or options that do not fit its constructor."""
    kind, options = settings.get("kind"), {name: value for name, value in settings.items() if name != "kind"}
    if kind == NO_BODY and not options:
        return
    if kind not in BODIES:
        rule = "takes no options" if kind == NO_BODY else f"is not one of {', '.join([NO_BODY, *BODIES])}"
        raise InputError(f"model.body.kind={kind} {rule}.")
    check_options(BODIES[kind], options, "model.body", graph)


def build_body(
    settings: Mapping[str, Any], heads: Sequence[Query], context_width: int, impression_width: int
) -> nn.Module | None:
    """Return the body, or None for `kind: towers`."""
    if settings["kind"] == NO_BODY:
        return None
    options = {name: value for name, value in settings.items() if name != "kind"}
    return BODIES[settings["kind"]](heads, context_width, impression_width, **options)
