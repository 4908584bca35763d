"""The whole model: tables below, and above them one logit per impression and edge of the behaviour graph."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest
from training.feed.batch import Bags, Batch
from training.model.embeddings import Embeddings
from training.model.graph import Graph, Query
from training.model.own_tables import tables_of
from training.model.precision import DTYPE_OF
from training.model.settings import EmbeddingSettings, ModelSettings
from training.model.towers import DropoutKey, TowerStack

#: A multiple of what kernels of matrix products take at a time.
_ROWS_OF_A_KERNEL = 16


class EntireSpaceModel(nn.Module):
    """Embeddings, shared or of each head's own, below one tower for each head of `graph`."""

    def __init__(
        self,
        manifest: Manifest,
        graph: Graph,
        embedding: EmbeddingSettings,
        settings: ModelSettings,
        seed: int,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.seed, self.dtype = seed, DTYPE_OF[precision]
        self.num_copies = settings.num_copies(len(graph.heads))
        self.context, self.impression = (
            Embeddings(tables_of(manifest.fields_of(scope, INDEX), self.num_copies), embedding)
            for scope in ("context", "impression")
        )
        #: A tower's inputs from each scope: the fields' embeddings, then the numeric fields, then the dense ones.
        self.widths = (
            self.context.width // self.num_copies + manifest.num_inputs("context"),
            self.impression.width // self.num_copies + manifest.num_inputs("impression"),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # every rank draws the same towers
            self.towers: nn.Module = TowerStack(graph.heads, *self.widths, settings)

    def forward(self, context_CD: Tensor, impression_BD: Tensor, batch: Batch, step: int | None) -> dict[Query, Tensor]:
        """Return head → logit [B], from the pooled rows of the categorical fields and the rest of `batch`.

        `step` of the run keys the dropout masks; it is None outside training.
        """
        context_CD = append_numeric(context_CD, batch.context_numeric, self.num_copies).to(self.dtype)
        impression_BD = append_numeric(impression_BD, batch.impression_numeric, self.num_copies).to(self.dtype)
        index_B = batch.context_of_impression
        if step is None:
            logit_of = self.towers(*_padded(context_CD, impression_BD, index_B), None)
            return {head: logit[: len(index_B)] for head, logit in logit_of.items()}
        key = DropoutKey(self.seed, step, batch.impression_id)
        trained: dict[Query, Tensor] = self.towers(context_CD, impression_BD, index_B, key)
        return trained


def _padded(context_CD: Tensor, impression_BD: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Append rows of zeros, so that the numbers of contexts and of impressions divide by 16.

    Outside training a row's logits do not depend on the batch around it. MKL multiplies the rows of a batch by four and the
    last one to three by another kernel, which rounds otherwise. The last rows would be others with every number of ranks.
    """
    contexts, impressions = (-len(rows) % _ROWS_OF_A_KERNEL for rows in (context_CD, impression_BD))
    if contexts:
        context_CD = pad(context_CD, (0, 0, 0, contexts))
    if impressions:
        impression_BD = pad(impression_BD, (0, 0, 0, impressions))
        index_B = torch.cat([index_B, index_B[-1:].expand(impressions)])
    return context_CD, impression_BD, index_B


def append_numeric(embedded_ND: Tensor, numeric_ND: Tensor, num_copies: int) -> Tensor:
    """Append the numbers of a scope to its embeddings, to those of each of `num_copies` heads with tables of their own."""
    if not numeric_ND.shape[1]:
        return embedded_ND
    parts = embedded_ND.chunk(num_copies, dim=1)
    return torch.cat([part for embedded in parts for part in (embedded, numeric_ND)], dim=1)


def or_stand_in(batch: Batch, num_context_fields: int, num_impression_fields: int) -> Batch:
    """Return `batch`, or for an empty one a stand-in: one context with one impression, whose bags are empty.

    A rank without impressions still takes part in every collective of the step. Its loss is multiplied by 0.
    """
    if batch.num_impressions:
        return batch

    def empty(num_fields: int, like: Bags) -> Bags:
        return Bags(like.values[:0], like.lengths.new_zeros(num_fields), like.weights[:0], (0,) * num_fields)

    return Batch(
        context=empty(num_context_fields, batch.context),
        impression=empty(num_impression_fields, batch.impression),
        context_numeric=batch.context_numeric.new_zeros((1, batch.context_numeric.shape[1])),
        impression_numeric=batch.impression_numeric.new_zeros((1, batch.impression_numeric.shape[1])),
        context_of_impression=batch.context_of_impression.new_zeros(1),
        labels={name: label.new_zeros(1) for name, label in batch.labels.items()},
        impression_id=batch.impression_id.new_zeros(1),
        group_id=batch.group_id.new_zeros(1),
        context_id=[""],
    )
