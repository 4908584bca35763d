"""Optimizers: one for the tables, which update inside the backward pass, and Adam for the towers, after it."""

import math
from typing import Any

import torch
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from pipeline.errors import InputError
from training.distributed.settings import EmbeddingOptimizerSettings, TowerOptimizerSettings
from training.model.embeddings import allocated_dim, rowwise_lr
from training.model.entire_space import EntireSpaceModel
from training.model.settings import EmbeddingSettings

_CLASSES = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


def fuse(model: EntireSpaceModel, embedding: EmbeddingSettings, settings: EmbeddingOptimizerSettings) -> None:
    """Have every table of `model` that will be sharded update itself inside the backward pass."""
    for scope in (model.context, model.impression):
        for name, parameter in zip(scope.names, scope.tables.parameters(), strict=True):
            options = _options(settings, embedding.dim_of(name))
            apply_optimizer_in_backward(_CLASSES[settings.name], [parameter], options)


def dense(
    tables: dict[str, torch.Tensor], embedding: EmbeddingSettings, settings: EmbeddingOptimizerSettings
) -> torch.optim.Optimizer:
    """The same optimizer for replicated `tables`, to be stepped after the backward pass.

    Raises InputError for Adam, whose momentum would move rows that have no gradient, as its fused kernel does not.
    """
    if settings.name == "adam":
        raise InputError(
            f"optimizer.embeddings.name=adam cannot train data_parallel tables ({', '.join(tables)}); give them "
            "sharding.tables.<field>=table_wise or row_wise."
        )
    groups = [{"params": [table], **_options(settings, embedding.dim_of(name))} for name, table in tables.items()]
    return _CLASSES[settings.name](groups)


def state_of(optimizer: torch.optim.Optimizer, table: torch.Tensor) -> dict[str, torch.Tensor]:
    """A replicated table's state under FBGEMM's names and shapes, as views."""
    sums = optimizer.state[table].get("sum")
    return {} if sums is None else {"momentum1": sums.view(-1) if sums.shape[1] == 1 else sums}


def adam(parameters: Any, settings: TowerOptimizerSettings) -> torch.optim.Optimizer:
    """The towers' optimizer."""
    return torch.optim.Adam(
        parameters, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=True
    )


def _options(settings: EmbeddingOptimizerSettings, dim: int) -> dict[str, Any]:
    options: dict[str, Any] = {"lr": settings.lr}
    if settings.name != "sgd":
        options["eps"] = settings.eps
    if settings.name == "rowwise_adagrad":
        options["lr"] = rowwise_lr(settings.lr, dim)
        # eps stands beside the root of the same mean.
        options["eps"] = settings.eps * math.sqrt(dim / allocated_dim(dim))
    return options
