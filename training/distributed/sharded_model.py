"""A model on its ranks, and what a training step does with it: forward, differentiate, learn.

Between the last two nothing has changed yet, so the ranks can still find together that a loss is not finite.
"""

# Shapes: B impressions.

from dataclasses import dataclass

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from training.distributed.exchange import Exchange, Handle, Pooled
from training.distributed.settings import OptimizerSettings
from training.distributed.tower_gradients import sum_in_rank_order
from training.distributed.world import World
from training.feed.batch import Batch
from training.model.entire_space import EntireSpaceModel
from training.model.graph import Query


@dataclass(frozen=True)
class Shard:
    """The rows [first_row, first_row + len(weight)) of one table, as this rank holds them: live tensors."""

    table: str
    first_row: int
    weight: Tensor  # [rows, allocated columns]
    optimizer: dict[str, Tensor]  # state name → [rows, …]
    saved: bool = True  # by this rank; rank 0 saves what all ranks hold


@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass gives, and `learn` takes."""

    logits: dict[Query, Tensor]  # edge → [B]
    pooled: Pooled


@dataclass
class ShardedModel:
    """A model on its ranks. All ranks call everything in the same order."""

    network: EntireSpaceModel  # its tables are TorchRec's, its towers are wrapped in DDP
    towers: nn.Module  # the same towers without DDP, whose names of parameters would begin with `module.`
    exchange: Exchange
    shards: list[Shard]  # this rank's
    tower_optimizer: torch.optim.Optimizer
    table_optimizer: torch.optim.Optimizer | None  # of the replicated tables, where there are any
    settings: OptimizerSettings
    world: World

    def __post_init__(self) -> None:
        kernels = [kernel.module for kernel in self.exchange.kernels]
        self._fused = [kernel for kernel in kernels if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen)]
        self._fused_rates = [kernel.get_learning_rate() for kernel in self._fused]
        self._dense = [kernel for kernel in kernels if isinstance(kernel, DenseTableBatchedEmbeddingBagsCodegen)]
        groups = self.table_optimizer.param_groups if self.table_optimizer else []
        self._group_rates = [(group, group["lr"]) for group in groups]
        self._factor = 1.0
        self.num_updates = 0  # that this model has had, those of the run that it continues included

    def predict(self, batch: Batch, ids: Handle | None = None) -> dict[Query, Tensor]:
        """edge → logit [B], outside training; `ids` where those of `batch` were sent before."""
        with torch.no_grad():
            return self.forward(batch, ids or self.exchange.send(batch), None).logits

    def forward(self, batch: Batch, ids: Handle, run_step: int | None) -> ForwardPass:
        """One forward pass over `batch`, whose `ids` were sent; `run_step` is None outside training."""
        if run_step is not None:
            self._begin_step(run_step)
        pooled = self.exchange.look_up(ids)
        return ForwardPass(self.network(pooled.context_CD, pooled.impression_BD, batch, run_step), pooled)

    def differentiate(self, loss: Tensor) -> None:
        """Compute the gradients of the towers, summed over the ranks, and those of this rank's pooled rows. No weight changes:
        pooled rows are leaves of autograd."""
        self.tower_optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def learn(self, forward_pass: ForwardPass) -> None:
        """One step down the gradients that `differentiate` left, at the rates of the step of the forward pass."""
        for kernel in self._dense:
            kernel.weights.grad = None  # the tables are views of it
        self.exchange.learn(forward_pass.pooled)  # sharded tables update in here
        for kernel in self._dense:
            if kernel.weights.grad is not None:
                sum_in_rank_order(kernel.weights.grad, self.world)
        if self.settings.towers.clip_norm:
            nn.utils.clip_grad_norm_(self.towers.parameters(), self.settings.towers.clip_norm)
        self.tower_optimizer.step()
        if self.table_optimizer:
            self.table_optimizer.step()
        self.num_updates += 1

    def _begin_step(self, run_step: int) -> None:
        """Trap: FBGEMM's kernels read the rate of a backward pass when they run forwards.

        And they count their forward passes, those of validation too and from 0 after a restart, for Adam's correction
        of its bias: here that count is the number of updates.
        """
        self._set_rates(run_step)
        for kernel in self._fused:
            kernel.iter.fill_(self.num_updates)
            kernel.iter_cpu.fill_(self.num_updates)

    def _set_rates(self, run_step: int) -> None:
        towers, embeddings = self.settings.towers, self.settings.embeddings
        for group in self.tower_optimizer.param_groups:
            group["lr"] = towers.lr * towers.schedule.factor(run_step)
        factor = embeddings.schedule.factor(run_step)
        if factor != self._factor:
            for kernel, rate in zip(self._fused, self._fused_rates, strict=True):
                kernel.set_learning_rate(rate * factor)
            for group, rate in self._group_rates:
                group["lr"] = rate * factor
            self._factor = factor
