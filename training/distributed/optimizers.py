"""Optimizers: sharded tables update inside the backward pass; replicated tables and the towers (Adam) after it."""

import math
from typing import Any

import torch
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from pipeline.errors import InputError
from training.distributed.settings import EmbeddingOptimizerSettings, TowerOptimizerSettings
from training.distributed.torchrec_internals import state_of_replicated
from training.model.embeddings import rowwise_lr
from training.model.entire_space import EntireSpaceModel
from training.model.settings import EmbeddingSettings, allocated_dim

_CLASSES = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


def fuse_into_backward(
    model: EntireSpaceModel, embedding: EmbeddingSettings, settings: EmbeddingOptimizerSettings
) -> None:
    """Have every table of `model` update itself inside the backward pass, once it is sharded."""
    for scope in (model.context, model.impression):
        for name, parameter in zip(scope.names, scope.tables.parameters(), strict=True):
            options = _options(settings, embedding.dim_of(name))
            apply_optimizer_in_backward(_CLASSES[settings.name], [parameter], options)


def replicated_optimizer(
    tables: dict[str, torch.Tensor], embedding: EmbeddingSettings, settings: EmbeddingOptimizerSettings
) -> torch.optim.Optimizer:
    """Build the optimizer of replicated `tables`, which is stepped after the backward pass.

    Raises InputError for Adam: its momentum would move rows without a gradient, which its fused kernel does not.
    """
    if settings.name == "adam":
        raise InputError(
            f"optimizer.embeddings.name=adam cannot train data_parallel tables ({', '.join(tables)}); give them "
            "sharding.tables.<field>=table_wise or row_wise."
        )
    groups = [{"params": [table], **_options(settings, embedding.dim_of(name))} for name, table in tables.items()]
    return _CLASSES[settings.name](groups)


def replicated_state(optimizer: torch.optim.Optimizer, table: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a replicated table's state under the names and shapes that a sharded one's has, as views."""
    sums = optimizer.state[table].get("sum")
    return {} if sums is None else state_of_replicated(sums)


def tower_optimizer(parameters: Any, settings: TowerOptimizerSettings) -> torch.optim.Optimizer:
    """Build the towers' optimizer, Adam."""
    return torch.optim.Adam(
        parameters, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=True
    )


def _options(settings: EmbeddingOptimizerSettings, dim: int) -> dict[str, Any]:
    """Return torch's options for a table of `dim` used columns, which its allocated columns do not change."""
    options: dict[str, Any] = {"lr": settings.lr}
    if settings.name != "sgd":
        options["eps"] = settings.eps
    if settings.name == "rowwise_adagrad":
        options["lr"] = rowwise_lr(settings.lr, dim)
        # eps stands beside the root of the same mean.
        options["eps"] = settings.eps * math.sqrt(dim / allocated_dim(dim))
    return options
