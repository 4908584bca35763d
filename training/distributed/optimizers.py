"""Optimizers: one for the tables, which update inside the backward pass, and Adam for the towers, after it."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from pipeline.errors import InputError
from training.model.embeddings import EmbeddingSettings, allocated, rowwise_lr
from training.model.entire_space import EntireSpaceModel

#: What FBGEMM's fused kernels have, by device.
EMBEDDING_OPTIMIZERS = {
    "cpu": ("rowwise_adagrad", "adagrad", "sgd"),
    "cuda": ("rowwise_adagrad", "adagrad", "sgd", "adam"),
}
DECAYS = ("none", "linear", "cosine")
_CLASSES = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


@dataclass
class ScheduleSettings:
    """The groups `optimizer.towers.schedule` and `optimizer.embeddings.schedule`: what the rate is multiplied by.

    It rises to 1 over `warmup_steps`, then falls to `final` over `decay_steps` and stays there. Steps, not epochs: a run
    that is continued for more epochs keeps the rates that it had.
    """

    warmup_steps: int = 0
    decay: str = "none"  # none | linear | cosine
    decay_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InputError(f"optimizer: schedule.warmup_steps={self.warmup_steps} is below 0.")
        if self.decay not in DECAYS:
            raise InputError(f"optimizer: schedule.decay={self.decay} is not one of {', '.join(DECAYS)}.")
        if (self.decay == "none") != (self.decay_steps == 0) or self.decay_steps < 0:
            raise InputError(
                f"optimizer: schedule.decay={self.decay} does not go with decay_steps={self.decay_steps}; "
                "give decay_steps above 0 with linear or cosine, and 0 with none."
            )
        if not 0.0 <= self.final <= 1.0:
            raise InputError(f"optimizer: schedule.final={self.final} is outside [0, 1].")

    def factor(self, step: int) -> float:
        """At `step` of the run, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "none":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / self.decay_steps)
        left = 1.0 - done if self.decay == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
        return self.final + (1.0 - self.final) * left


@dataclass
class EmbeddingOptimizerSettings:
    """The group `optimizer.embeddings`."""

    name: str = "rowwise_adagrad"
    lr: float = 0.1
    eps: float = 1e-8
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)


@dataclass
class TowerOptimizerSettings:
    """The group `optimizer.towers`: Adam.

    `clip_norm` bounds the norm of all towers' gradients together. The tables' are not in it and are not clipped: they
    move inside the backward pass, before a global norm could be known.
    """

    lr: float = 3e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip_norm: float = 0.0  # 0: not clipped
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)

    def __post_init__(self) -> None:
        if not self.clip_norm >= 0.0:
            raise InputError(f"optimizer.towers.clip_norm={self.clip_norm} is below 0; 0 does not clip.")


@dataclass
class OptimizerSettings:
    """The group `optimizer`."""

    embeddings: EmbeddingOptimizerSettings = field(default_factory=EmbeddingOptimizerSettings)
    towers: TowerOptimizerSettings = field(default_factory=TowerOptimizerSettings)

    def check_device(self, device: torch.device) -> None:
        """InputError where `device` has no fused kernel for the embeddings' optimizer."""
        have = EMBEDDING_OPTIMIZERS[device.type]
        if self.embeddings.name not in have:
            raise InputError(
                f"optimizer.embeddings.name={self.embeddings.name} is not there on {device.type}; it has {', '.join(have)}."
            )


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
        options["eps"] = settings.eps * math.sqrt(dim / allocated(dim))
    return options
