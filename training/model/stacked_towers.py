"""All towers in one pass: the layers of towers of equal widths are multiplied together, in few operators.

A GPU is kept waiting by launches, not by arithmetic: four towers one by one are 3,000 operators a step, of which each
takes the host longer than the GPU. Here T towers are one product a layer:

    u [C, D] ── [W_u1; … W_uT] ── gather ── [B, T·H] ─┐
                                                      + ── as [T, B, H]: ReLU ── dropout ── W_t·x + b_t ── … ── [T, B]
    i [B, D] ── [W_i1; … W_iT] ─────────────────────── ┘

The towers keep their parameters, so a checkpoint is the same. `towers.split_perceptron` is the reference of each.
"""

# Shapes: B impressions, C contexts, D width of the inputs, H width of a layer, T towers, L layers behind the first one.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from training.model.dropout_masks import kept_units
from training.model.gather_contexts import gather_in_segments
from training.model.precision import widen


class StackedTowers(nn.Module):
    """`towers`, all of the same widths, as one network.

    With `has_own_inputs` the inputs of all towers stand side by side, [C, T · D] and [B, T · D]; else all read the same.
    """

    def __init__(self, towers: Sequence[nn.Module], dropout: float, has_own_inputs: bool) -> None:
        super().__init__()
        self.towers: Any = nn.ModuleList(towers)
        self.dropout, self.has_own_inputs = dropout, has_own_inputs

    @property
    def widths(self) -> list[int]:
        """The width of the input of each layer behind the first."""
        return [weight.shape[1] for weight in self.towers[0].weights]

    def forward(
        self,
        context_CD: Tensor,
        impression_BD: Tensor,
        index_B: Tensor,
        impression_id_B: Tensor,
        mask_keys: Tensor | None,
    ) -> Tensor:
        """Return the logits [T, B]; `mask_keys` is None where nothing is dropped.

        `index_B`, the context of each impression, is non-decreasing. Inputs in bfloat16 mean products in bfloat16.
        """
        dtype = context_CD.dtype
        x = self._first_layer(context_CD, impression_BD, index_B)
        for layer in range(len(self.widths)):
            weight = torch.stack([tower.weights[layer] for tower in self.towers]).to(dtype)
            bias = torch.stack([tower.biases[layer] for tower in self.towers]).to(dtype)
            x = x.relu()
            if mask_keys is not None:
                x = self._drop(x, impression_id_B, mask_keys[layer])
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        return x.squeeze(2).to(self.towers[0].first_bias.dtype)

    def _first_layer(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor) -> Tensor:
        """Return W_u·u + W_i·i + b of each tower, [T, B, H]."""
        dtype, num_towers = context_CD.dtype, len(self.towers)
        of_context, of_impression, bias = (
            torch.stack([getattr(tower, name) for tower in self.towers]).to(dtype)
            for name in ("context_weight", "impression_weight", "first_bias")
        )
        if self.has_own_inputs:
            inputs = [x.unflatten(1, (num_towers, -1)).transpose(0, 1) for x in (context_CD, impression_BD)]
            from_context = torch.baddbmm(bias.unsqueeze(1), inputs[0], of_context.transpose(1, 2))
            from_impression = torch.bmm(inputs[1], of_impression.transpose(1, 2))
            gathered = gather_in_segments(widen(from_context.transpose(0, 1).flatten(1)), index_B).to(dtype)
            return gathered.unflatten(1, (num_towers, -1)).transpose(0, 1) + from_impression
        from_context_CH = linear(context_CD, of_context.flatten(0, 1), bias.flatten())
        gathered = gather_in_segments(widen(from_context_CH), index_B).to(dtype)
        x_BH = torch.addmm(gathered, impression_BD, of_impression.flatten(0, 1).t())
        return x_BH.unflatten(1, (num_towers, -1)).transpose(0, 1)

    def _drop(self, x: Tensor, impression_id_B: Tensor, tower_keys: Tensor) -> Tensor:
        """Multiply by 0 or 1 / (1 - rate). A NaN stays one, for the trainer to see."""
        kept = kept_units(impression_id_B, tower_keys, x.shape[2], self.dropout)
        return x * kept * (1.0 / (1.0 - self.dropout))
