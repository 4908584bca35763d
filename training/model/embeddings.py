"""Embedding tables: one TorchRec collection for the context fields, one for the impression fields.

The pooling (sum or mean of a bag, by the log's weights) is already in a batch's weights, so every table sums.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType

from pipeline.dataset.manifest import ManifestField
from training.model.settings import EmbeddingSettings, allocated_dim


def rowwise_lr(lr: float, dim: int) -> float:
    """Return the learning rate with which row-wise Adagrad on `allocated_dim(dim)` columns equals `lr` on `dim` columns.

    It divides by the root of the *mean* of g² over all columns, which the unused ones make smaller.
    """
    return lr * math.sqrt(dim / allocated_dim(dim))


class Embeddings(nn.Module):
    """The tables of one scope. `training.distributed` shards them and looks up their rows."""

    def __init__(self, fields: Sequence[ManifestField], settings: EmbeddingSettings) -> None:
        super().__init__()
        self.names = [entry.name for entry in fields]
        self.dims = [settings.dim_of(name) for name in self.names]
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=entry.name,
                    feature_names=[entry.name],
                    num_embeddings=entry.num_rows,
                    embedding_dim=allocated_dim(dim),
                    pooling=PoolingType.SUM,
                    init_fn=_leave_uninitialized,
                )
                for entry, dim in zip(fields, self.dims, strict=True)
            ],
            is_weighted=True,
            device=torch.device("meta"),  # the shards are allocated where they are placed
        )

    @property
    def width(self) -> int:
        """The used columns of all fields."""
        return sum(self.dims)


def _leave_uninitialized(values: Tensor) -> Tensor:
    """Leave `values`: TorchRec's initial values would be overwritten (training.model.counter_random)."""
    return values
