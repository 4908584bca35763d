"""Embedding tables: one TorchRec collection for the context fields, one for the impression fields.

The pooling (sum or mean of a bag, by the log's weights) is already in a batch's weights, so every table sums.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType

from pipeline.dataset.kinds import NUMBER
from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError

POOLINGS = ("sum", "mean")
#: FBGEMM's kernels want a row to be a multiple of this many floats.
_ALIGNMENT = 4


@dataclass
class EmbeddingSettings:
    """The group `embedding`."""

    dim: int = 18  # columns of a row (ESMM §3.1)
    dims: dict[str, int] = field(default_factory=dict)  # by field, where it differs
    pooling: str = "sum"  # of a bag: sum | mean, by the weights of the log
    poolings: dict[str, str] = field(default_factory=dict)  # by field, where it differs
    init_bound: float = 0.05  # initial values are uniform in ± this

    def __post_init__(self) -> None:
        for key, dim in {"dim": self.dim, **{f"dims.{name}": dim for name, dim in self.dims.items()}}.items():
            if dim < 1:
                raise InputError(f"embedding.{key}={dim} is below 1.")
        poolings = {"pooling": self.pooling, **{f"poolings.{name}": how for name, how in self.poolings.items()}}
        for key, how in poolings.items():
            if how not in POOLINGS:
                raise InputError(f"embedding.{key}={how} is not one of {', '.join(POOLINGS)}.")

    def check_fields(self, fields: Sequence[ManifestField]) -> None:
        """InputError where `dims` or `poolings` name a field that the dataset lacks, or a numeric one."""
        names = [entry.name for entry in fields]
        numeric = [entry.name for entry in fields if entry.stored == NUMBER]
        for key, given in (("dims", self.dims), ("poolings", self.poolings)):
            for name in given:
                if name not in names:
                    raise InputError(
                        f"embedding.{key}.{name}: the dataset has no field {name}; it has {', '.join(names)}."
                    )
                if name in numeric:
                    raise InputError(
                        f"embedding.{key}.{name}: {name} is numeric and goes to the towers as one number; leave it out."
                    )

    def dim_of(self, name: str) -> int:
        """The columns that the towers see of a row of field `name`."""
        return self.dims.get(name, self.dim)

    def pooling_of(self, fields: Sequence[ManifestField]) -> dict[str, str]:
        """field → sum | mean."""
        return {entry.name: self.poolings.get(entry.name, self.pooling) for entry in fields}


def allocated(dim: int) -> int:
    """The columns that a table allocates for `dim` used ones: 18 → 20. The rest is zero and stays so."""
    return -(-dim // _ALIGNMENT) * _ALIGNMENT


def rowwise_lr(lr: float, dim: int) -> float:
    """The rate at which row-wise Adagrad on `allocated(dim)` columns moves like one at `lr` on `dim` columns.

    It divides by the root of the *mean* of g² over all columns, which the unused ones make smaller.
    """
    return lr * math.sqrt(dim / allocated(dim))


class Embeddings(nn.Module):
    """The tables of one scope, as `training.distributed.shard_model` shards them and `training.distributed.peer_exchange` looks them up."""

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
                    embedding_dim=allocated(dim),
                    pooling=PoolingType.SUM,
                    init_fn=_leave,
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


def _leave(values: Tensor) -> Tensor:
    """TorchRec's own initial values would be overwritten (training.model.counter_random)."""
    return values
