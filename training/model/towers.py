"""Towers: one multilayer perceptron for each edge of the behaviour graph, its first layer split by scope.

W·[u; i] = W_u·u + W_i·i, where u is a context's input and i an impression's. W_u·u is multiplied once a context and
gathered to its impressions. With 58 impressions a context and 13 of 23 fields in it, that saves half of the first layer.

    u [C, D] ── W_u·u + b ── gather to [B, H] ─┐
                                               + ── ReLU ── dropout ── W·x + b ── … ── logit [B]
    i [B, D] ── W_i·i ─────────────────────────┘

`split_perceptron` is that drawing. A CPU takes the same from `training.model.cpu_tower`, and a GPU trains all towers in one
pass (`training.model.stacked_towers`); tests hold all of them equal.
"""

# Shapes: B impressions, C contexts, D width of the inputs, H width of a layer.

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from training.feed.device_copy import on_device
from training.model import cpu_tower
from training.model.bodies import build_body
from training.model.dropout_masks import dropout_mask, mask_keys
from training.model.gather_contexts import gather_contexts
from training.model.graph import Query
from training.model.precision import widen
from training.model.settings import ModelSettings, TowerSettings
from training.model.stacked_towers import StackedTowers


@dataclass(frozen=True)
class DropoutKey:
    """The key of a training step's dropout masks."""

    seed: int
    step: int
    impression_id_B: Tensor


class TowerStack(nn.Module):
    """The part of the model that is replicated on all ranks: one tower for each head. The tables stay outside.

    A checkpoint calls a parameter `<number of the head>.<name in the tower>`.
    """

    def __init__(
        self, heads: Sequence[Query], context_width: int, impression_width: int, settings: ModelSettings
    ) -> None:
        super().__init__()
        self.heads, self.num_copies = tuple(heads), settings.num_copies(len(heads))
        self.dropout, self.num_hidden = settings.towers.dropout, len(settings.towers.hidden)
        self.body = build_body(settings.body, heads, context_width, impression_width)
        self._stacked: list[Callable[..., Tensor]] = []  # a list, for the parameters are the towers'
        for number, head in enumerate(heads):
            tower: nn.Module
            if self.body is None:
                tower = Tower(str(head), context_width, impression_width, settings.towers)
            else:
                tower = TowerOnBody(str(head), int(self.body.width), settings.towers)  # type: ignore[arg-type]
            self.add_module(str(number), tower)

    @property
    def towers(self) -> dict[Query, nn.Module]:
        """The tower of each head."""
        return {head: self.get_submodule(str(number)) for number, head in enumerate(self.heads)}

    def stacked(self) -> StackedTowers:
        """Return the towers as one network, on the same parameters."""
        assert self.body is None
        return StackedTowers(list(self.towers.values()), self.dropout, self.num_copies > 1)

    def train_stacked(self, network: Callable[..., Tensor]) -> None:
        """Have training go through `network`: `stacked()`, or what it is compiled to. Predictions stay as they are."""
        self._stacked = [network]

    def forward(
        self, context_CD: Tensor, impression_BD: Tensor, context_of_impression_B: Tensor, key: DropoutKey | None
    ) -> dict[Query, Tensor]:
        """Return head → logit [B]; the arguments are those of each tower.

        Where each head has tables of its own, the inputs of all heads stand side by side: [C, heads · D], [B, heads · D].
        """
        inputs = (context_CD, impression_BD, context_of_impression_B)
        if self._stacked and key is not None:
            keys = self._mask_keys(key) if self.dropout and self.num_hidden else None
            logits = self._stacked[0](*inputs, key.impression_id_B, keys)
            return dict(zip(self.heads, logits.unbind(0), strict=True))
        towers = self.towers
        if self.num_copies > 1:
            parts = zip(context_CD.chunk(self.num_copies, 1), impression_BD.chunk(self.num_copies, 1), strict=True)
            # A copy, and not contiguous(): that would ask for the number of rows, on which an exported graph must not depend.
            own = {
                head: tuple(part.clone(memory_format=torch.contiguous_format) for part in pair)
                for head, pair in zip(self.heads, parts, strict=True)
            }
            return {head: tower(*own[head], context_of_impression_B, key) for head, tower in towers.items()}
        if self.body is None:
            return {head: tower(*inputs, key) for head, tower in towers.items()}
        dtype = context_CD.dtype
        # A body's modules keep fp32 weights; autocast multiplies them in the inputs' precision.
        with torch.autocast(context_CD.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            shared = self.body(*inputs)
        return {head: tower(shared[head].to(dtype), key) for head, tower in towers.items()}

    def _mask_keys(self, key: DropoutKey) -> Tensor:
        keys = mask_keys(key.seed, key.step, [str(head) for head in self.heads], self.num_hidden)
        return on_device(keys, torch.int64, key.impression_id_B.device)


class Tower(nn.Module):
    """A perceptron from context [C, D] and impression [B, D] to logit [B]."""

    #: Whether an exported graph has the operators of cpu_tower too: no file can hold them, and a CPU takes half the time.
    exports_cpu_tower = False

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
        """Return the logit of each impression.

        `context_of_impression_B` is non-decreasing. `key` is None outside training, where nothing is dropped. Inputs in
        bfloat16 mean products in bfloat16; the weights, their gradients and the logit keep their precision.
        """
        masks = _masks(self.name, self.weights, self.dropout, key)
        first = (self.context_weight, self.impression_weight, self.first_bias)
        later = itertools.chain(*zip(self.weights, self.biases, strict=True))
        takes_cpu_tower = context_CD.device.type == "cpu" and (
            self.exports_cpu_tower or not torch.compiler.is_exporting()
        )
        perceptron = cpu_tower.SplitPerceptron.apply if takes_cpu_tower else split_perceptron
        logits = perceptron(context_CD, impression_BD, context_of_impression_B, masks, *first, *later)
        return logits.squeeze(1).to(self.first_bias.dtype)


class TowerOnBody(nn.Module):
    """A perceptron on a body's output for one head, [B, H], to logit [B]."""

    def __init__(self, name: str, width: int, settings: TowerSettings) -> None:
        super().__init__()
        self.name, self.dropout = name, settings.dropout
        pairs = list(itertools.pairwise([width, *settings.hidden, 1]))
        self.weights = nn.ParameterList([_parameter(wide, narrow, fan_in=narrow) for narrow, wide in pairs])
        self.biases = nn.ParameterList([_parameter(wide, fan_in=narrow) for narrow, wide in pairs])

    def forward(self, x_BH: Tensor, key: DropoutKey | None) -> Tensor:
        """Return the logit of each impression; `key` and precision as for `Tower`."""
        later = list(itertools.chain(*zip(self.weights, self.biases, strict=True)))
        x_BH = linear(x_BH, later[0].to(x_BH.dtype), later[1].to(x_BH.dtype))
        masks = _masks(self.name, self.weights[1:], self.dropout, key)
        return _later_layers(x_BH, masks, later[2:]).squeeze(1).to(later[1].dtype)


def _masks(name: str, weights: Iterable[Tensor], rate: float, key: DropoutKey | None) -> list[Tensor]:
    """Return a mask for the input of each of `weights`; none outside training or without dropout."""
    if not rate or key is None:
        return []
    return [
        dropout_mask(key.seed, key.step, f"{name}/{layer}", key.impression_id_B, weight.shape[1], rate)
        for layer, weight in enumerate(weights)
    ]


def split_perceptron(
    context_CD: Tensor,
    impression_BD: Tensor,
    context_of_impression_B: Tensor,
    masks: Sequence[Tensor],
    context_weight: Tensor,
    impression_weight: Tensor,
    first_bias: Tensor,
    *later: Tensor,
) -> Tensor:
    """Return act(W_u·u + W_i·i + b), then act(W·x + b) for each pair (W, b) of `later`; the last one has no act.

    `masks` scale the input of each later layer; without masks, nothing is dropped. Every product has the inputs'
    precision.
    """
    dtype = context_CD.dtype
    from_context_CH = linear(context_CD, context_weight.to(dtype), first_bias.to(dtype))
    # Gathered in fp32 or wider, so that the gradients of a context's impressions are summed in it.
    from_context_BH = gather_contexts(widen(from_context_CH), context_of_impression_B).to(dtype)
    x_BH = from_context_BH + linear(impression_BD, impression_weight.to(dtype))
    return _later_layers(x_BH, masks, later)


def _later_layers(x_BH: Tensor, masks: Sequence[Tensor], later: Sequence[Tensor]) -> Tensor:
    dtype = x_BH.dtype
    for layer, (weight, bias) in enumerate(zip(later[::2], later[1::2], strict=True)):
        x_BH = x_BH.relu()
        if masks:
            x_BH = (x_BH * masks[layer]).to(dtype)
        x_BH = linear(x_BH, weight.to(dtype), bias.to(dtype))
    return x_BH


def _parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """Draw a parameter uniformly from ±1/√fan_in, as torch.nn.Linear does."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
