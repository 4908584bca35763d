"""A model on its ranks, and the three parts of a training step: forward, differentiate, learn.

No weight changes before `learn`, so the ranks can agree before it that every loss is finite.
"""

# Shapes: B impressions.

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.distributed.exchange import Exchange, Handle, Pooled
from training.distributed.settings import OptimizerSettings
from training.distributed.torchrec_internals import FusedKernels, ReplicatedKernels
from training.distributed.tower_gradients import sum_in_rank_order
from training.distributed.world import World
from training.feed.batch import Batch
from training.model.entire_space import EntireSpaceModel
from training.model.graph import Query
from training.model.towers import TowerStack


@dataclass(frozen=True)
class Shard:
    """The rows [first_row, first_row + len(weight)) of one table, as this rank stores them: live tensors."""

    table: str
    first_row: int
    weight: Tensor  # [rows, allocated columns]
    optimizer: dict[str, Tensor]  # state name → [rows, …]
    saved: bool = True  # by this rank; rank 0 saves the tables that every rank has


@dataclass(frozen=True)
class ForwardPass:
    """The output of a forward pass, as `learn` takes it."""

    logits: dict[Query, Tensor]  # edge → [B]
    pooled: Pooled


@dataclass
class ShardedModel:
    """A model on its ranks. All ranks make the same calls in the same order."""

    network: EntireSpaceModel  # its tables are TorchRec's; on several ranks its towers are wrapped in DDP
    towers: TowerStack  # the same towers without DDP, which puts `module.` before the parameters' names
    exchange: Exchange
    shards: list[Shard]  # this rank's
    tower_optimizer: torch.optim.Optimizer
    table_optimizer: torch.optim.Optimizer | None  # of the replicated tables, where there are any
    settings: OptimizerSettings
    world: World

    def __post_init__(self) -> None:
        kernels = [kernel.module for kernel in self.exchange.kernels]
        self._fused, self._replicated = FusedKernels(kernels), ReplicatedKernels(kernels)
        groups = self.table_optimizer.param_groups if self.table_optimizer else []
        self._group_rates = [(group, group["lr"]) for group in groups]
        self._factor = 1.0
        self.num_updates = 0  # of this model, those before a checkpoint or `init_from` included

    def predict(self, batch: Batch, ids: Handle | None = None) -> dict[Query, Tensor]:
        """Compute the logits outside training: edge → [B]. Give `ids` if those of `batch` were sent before."""
        with torch.no_grad():
            return self.forward(batch, ids or self.exchange.send(batch), None).logits

    def forward(self, batch: Batch, ids: Handle, run_step: int | None) -> ForwardPass:
        """Do a forward pass over `batch`, whose `ids` were sent; `run_step` is None outside training."""
        if run_step is not None:
            self._begin_step(run_step)
        pooled = self.exchange.look_up(ids)
        return ForwardPass(self.network(pooled.context_CD, pooled.impression_BD, batch, run_step), pooled)

    def differentiate(self, loss: Tensor) -> None:
        """Compute the gradients of the towers, summed over the ranks, and those of this rank's pooled rows. No weight changes:
        pooled rows are leaves of autograd."""
        self.tower_optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def learn(self, forward_pass: ForwardPass) -> Tensor:
        """Take one step down the gradients that `differentiate` left, at the learning rates of the forward pass.

        Returns the norm of the towers' gradients before they are clipped, the same on all ranks, on the device.
        """
        self._replicated.clear_gradients()
        self.exchange.learn(forward_pass.pooled)  # sharded tables update in here
        for gradient in self._replicated.gradients():
            sum_in_rank_order(gradient, self.world)
        gradients = [parameter.grad for parameter in self.towers.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.settings.towers.clip_norm:
            nn.utils.clip_grads_with_norm_(self.towers.parameters(), self.settings.towers.clip_norm, norm)
        self.tower_optimizer.step()
        if self.table_optimizer:
            self.table_optimizer.step()
        self.num_updates += 1
        return norm

    def learning_rates(self, run_step: int) -> dict[str, float]:
        """Return the rates at step `run_step` of the run: the towers' and, before a table scales it, the tables'."""
        towers, embeddings = self.settings.towers, self.settings.embeddings
        return {
            "towers": towers.lr * towers.schedule.factor(run_step),
            "embeddings": embeddings.lr * embeddings.schedule.factor(run_step),
        }

    def _begin_step(self, run_step: int) -> None:
        self._set_rates(run_step)
        if self.settings.embeddings.name == "adam":  # no other optimizer counts
            self._fused.set_num_updates(self.num_updates)

    def _set_rates(self, run_step: int) -> None:
        rate = self.learning_rates(run_step)["towers"]
        for group in self.tower_optimizer.param_groups:
            group["lr"] = rate
        factor = self.settings.embeddings.schedule.factor(run_step)
        if factor != self._factor:
            self._fused.scale_rates(factor)
            for group, rate in self._group_rates:
                group["lr"] = rate * factor
            self._factor = factor
