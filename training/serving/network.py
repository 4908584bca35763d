"""The model of a run for scoring: encoded columns in, probabilities out. It runs as it is, and `jobs.export` traces it.

    rows ── a table a field ── pooled [N, D] ─┐
    numbers ── tanh((v − µ)/σ) ───────────────┼─ towers ── logits ── graph ── p_ctr, p_cvr, …
    vectors ── (v − µ)/σ ─────────────────────┘

The feed pools and scales on its way to the trainer, in kernels that nothing can trace; here torch does. Tests hold the
two equal on every kind of field.
"""

# Shapes: B impressions, N contexts or impressions, V values of a field, D width of a scope's inputs.

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from pipeline.dataset.kinds import INDEX, NUMBER, VECTOR
from pipeline.dataset.manifest import ManifestField
from training.model.graph import Graph, Quotient
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
        #: Pool by operators that every runtime has: a product of matrices, which takes memory for each bag and value.
        self.is_portable = False
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
            impression_BD = self._nothing(context_of_impression.shape[0])
        logit_of = self.towers(context_CD.to(self.dtype), impression_BD.to(self.dtype), context_of_impression, None)
        predicted = {name: output_B.float() for name, output_B in self.graph.predict(logit_of).items()}
        # A quotient of two networks' estimates may exceed 1, and a score is a probability.
        quotients = {name for name, output in self.graph.outputs.items() if isinstance(output, Quotient)}
        return {name: value_B.clamp(max=1.0) if name in quotients else value_B for name, value_B in predicted.items()}

    def with_int8_tables(self) -> "ServedNetwork":
        """Return a copy with a byte for each number of the tables: round(x / step), step = max|x| / 127 of its row."""
        smaller = copy(self)
        smaller._buffers = dict(self._buffers)
        for name, table in self._buffers.items():
            if name.startswith("table_") and table is not None:
                step = (table.abs().amax(1, keepdim=True) / 127.0).clamp(min=torch.finfo(torch.float32).tiny)
                smaller.register_buffer(name, (table / step).round().to(torch.int8))
                smaller.register_buffer(f"step_{name.removeprefix('table_')}", step)
        return smaller

    def _nothing(self, num_rows: int) -> Tensor:
        return next(self.towers.parameters()).new_zeros((num_rows, 0))

    def _inputs(self, scope: str, columns: dict[str, Tensor]) -> Tensor | None:
        """Return [N, D], of heads with tables of their own side by side; None for a scope without fields."""
        parts = []
        for copy_of_head in range(self.towers.num_copies):
            for entry in self.fields[scope]:
                table = table_name(entry.name, copy_of_head)
                if entry.stored != INDEX:
                    parts.append(self._numbers(entry, columns[entry.name]))
                elif entry.arity == "one":
                    parts.append(self._rows(table, columns[entry.name]))
                else:
                    parts.append(self._pooled(entry, table, columns))
        return torch.cat(parts, dim=1) if parts else None

    def _rows(self, name: str, rows_N: Tensor) -> Tensor:
        """Return these rows of a table, [N, width]."""
        table = self.get_buffer(f"table_{name}")
        if table.dtype != torch.int8:
            return table.index_select(0, rows_N)
        return table.index_select(0, rows_N).float() * self.get_buffer(f"step_{name}").index_select(0, rows_N)

    def _pooled(self, entry: ManifestField, name: str, columns: dict[str, Tensor]) -> Tensor:
        """Return [N, width]: Σ w·row over each bag, or Σ w·row / Σ|w|; 0 for an empty bag, and where Σ|w| is 0."""
        rows_V, length_N = columns[entry.name], columns[f"{entry.name}__length"]
        weight_V = columns[f"{entry.name}__weight"] if entry.weighted else None
        start_N = (length_N.cumsum(0) - length_N).to(rows_V.dtype)
        place_V = torch.arange(rows_V.shape[0], dtype=rows_V.dtype, device=rows_V.device)
        is_mean = self.pooling[entry.name] == "mean"
        if self.is_portable:
            is_in_bag = (place_V >= start_N.unsqueeze(1)) & (place_V < (start_N + length_N).unsqueeze(1))
            share = is_in_bag.float() if weight_V is None else is_in_bag.float() * weight_V
            pooled, total = share @ self._rows(name, rows_V), share.abs().sum(1, keepdim=True)
        else:
            table = self.get_buffer(f"table_{name}")
            is_fp32 = table.dtype != torch.int8
            rows, chosen_V = (table, rows_V) if is_fp32 else (self._rows(name, rows_V), place_V)
            pooled = embedding_bag(chosen_V, rows, start_N, mode="sum", per_sample_weights=weight_V)
            total = length_N.unsqueeze(1).float()
            if is_mean and weight_V is not None:
                total = embedding_bag(place_V, weight_V.abs().unsqueeze(1), start_N, mode="sum")
        return torch.where(total > 0, pooled / total, 0.0) if is_mean else pooled

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
