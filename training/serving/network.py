"""The model of a run for scoring: encoded columns in, probabilities out. It runs as it is, and `jobs.export` traces it.

    rows ── a table a field ── pooled [N, D] ─┐
    numbers ── tanh((v − µ)/σ) ───────────────┼─ towers ── logits ── graph ── p_ctr, p_cvr, …
    vectors ── (v − µ)/σ ─────────────────────┘

The feed pools and scales on its way to the trainer, in kernels that nothing can trace; here torch does. Tests hold the
two equal on every kind of field.
"""

# Shapes: B impressions, N contexts or impressions, V values of a field, D width of a scope's inputs.

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from pipeline.dataset.kinds import INDEX, NUMBER, VECTOR
from pipeline.dataset.manifest import ManifestField
from training.model.graph import Graph
from training.model.own_tables import table_name
from training.model.towers import TowerStack


class ServedNetwork(nn.Module):
    """Tables, towers and graph of one run."""

    def __init__(
        self,
        fields: Sequence[ManifestField],
        pooling: Mapping[str, str],
        tables: Mapping[str, Tensor],
        towers: TowerStack,
        graph: Graph,
        dtype: torch.dtype,
    ) -> None:
        """Take the tables [rows, width] of each field of form INDEX: one, or one for each head (training.model.own_tables).

        `pooling` says sum or mean for each multi-valued field.
        """
        super().__init__()
        # In the order of the towers' inputs: the fields' embeddings, then the numeric fields, then the dense ones.
        self.fields = {
            scope: [entry for form in (INDEX, NUMBER, VECTOR) for entry in fields if (entry.scope, entry.stored) == (scope, form)]
            for scope in ("context", "impression")
        }  # fmt: skip
        self.pooling, self.towers, self.graph, self.dtype = dict(pooling), towers, graph, dtype
        for name, table in tables.items():
            self.register_buffer(f"table_{name}", table)
        for entry in fields:
            if entry.stored != INDEX:
                shift, scale = _moments(entry)
                self.register_buffer(f"shift_{entry.name}", shift)
                self.register_buffer(f"scale_{entry.name}", scale)

    def forward(
        self, contexts: dict[str, Tensor], impressions: dict[str, Tensor], context_of_impression: Tensor
    ) -> dict[str, Tensor]:
        """Return output → probability [B], float32.

        `contexts` and `impressions` are encoded columns (training.serving); `context_of_impression` is int64 [B],
        non-decreasing.
        """
        context_CD, impression_BD = self._inputs("context", contexts), self._inputs("impression", impressions)
        if context_CD is None:
            context_CD, context_of_impression = self._nothing(1), torch.zeros_like(context_of_impression)
        if impression_BD is None:
            impression_BD = self._nothing(len(context_of_impression))
        logit_of = self.towers(context_CD.to(self.dtype), impression_BD.to(self.dtype), context_of_impression, None)
        return {name: probability_B.float() for name, probability_B in self.graph.predict(logit_of).items()}

    def _nothing(self, num_rows: int) -> Tensor:
        return next(self.towers.parameters()).new_zeros((num_rows, 0))

    def _inputs(self, scope: str, columns: dict[str, Tensor]) -> Tensor | None:
        """Return [N, D], of heads with tables of their own side by side; None for a scope without fields."""
        parts = []
        for copy in range(self.towers.num_copies):
            for entry in self.fields[scope]:
                table = f"table_{table_name(entry.name, copy)}"
                if entry.stored != INDEX:
                    parts.append(self._numbers(entry, columns[entry.name]))
                elif entry.arity == "one":
                    parts.append(self.get_buffer(table).index_select(0, columns[entry.name]))
                else:
                    parts.append(self._pooled(entry, self.get_buffer(table), columns))
        return torch.cat(parts, dim=1) if parts else None

    def _pooled(self, entry: ManifestField, table: Tensor, columns: dict[str, Tensor]) -> Tensor:
        """Return [N, width]: Σ w·row over each bag, or Σ w·row / Σ|w|; 0 for an empty bag, and where Σ|w| is 0."""
        rows_V, length_N = columns[entry.name], columns[f"{entry.name}__length"]
        offsets_N = (length_N.cumsum(0) - length_N).to(rows_V.dtype)
        weight_V = columns[f"{entry.name}__weight"] if entry.weighted else None
        pooled = embedding_bag(rows_V, table, offsets_N, mode="sum", per_sample_weights=weight_V)
        if self.pooling[entry.name] != "mean":
            return pooled
        if weight_V is None:
            return pooled / length_N.clamp(min=1).unsqueeze(1)
        place_V = torch.arange(len(rows_V), dtype=rows_V.dtype, device=rows_V.device)
        total = embedding_bag(place_V, weight_V.abs().unsqueeze(1), offsets_N, mode="sum")
        return torch.where(total > 0, pooled / total, 0.0)

    def _numbers(self, entry: ManifestField, values: Tensor) -> Tensor:
        """Return the towers' inputs of a number or a vector, computed in float64 as the feed does; 0 where it is missing."""
        shift, scale = self.get_buffer(f"shift_{entry.name}"), self.get_buffer(f"scale_{entry.name}")
        wide = (values.reshape(-1, entry.num_inputs).double() - shift) / scale
        inputs = (wide.tanh() if entry.stored == NUMBER else wide).float()
        return torch.where(inputs.isnan(), 0.0, inputs)


def _moments(entry: ManifestField) -> tuple[Tensor, Tensor]:
    """Return what is subtracted from each number and what it is divided by, float64; infinity makes an input 0.

    A vector without moments goes to the towers as it is, and a number without spread as 0 (training.feed.numeric).
    """
    width = entry.num_inputs
    if entry.mean is None or entry.std is None:
        is_copied = entry.stored == VECTOR
        return torch.zeros(width, dtype=torch.float64), torch.full((width,), 1.0 if is_copied else torch.inf).double()
    mean, std = (np.array(moment, np.float64).reshape(width) for moment in (entry.mean, entry.std))
    return torch.from_numpy(mean), torch.from_numpy(np.where(std > 0, std, np.inf))
