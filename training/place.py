"""Where everything lives: tables sharded over the ranks by TorchRec, towers replicated, and their optimizers.

Sharded tables update inside the backward pass (FBGEMM's fused optimizers), towers and replicated tables after it, once
their gradients are averaged over the ranks. One rank takes the same road.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv, ShardingPlan

from pipeline.manifest import ManifestField
from training import optimizers
from training.embeddings import EmbeddingSettings
from training.init_values import uniform_rows
from training.model import EntireSpaceModel
from training.optimizers import OptimizerSettings
from training.sharding import ShardingSettings, plan_of
from training.world import World

_ROWS_AT_A_TIME = 1 << 18


@dataclass(frozen=True)
class Shard:
    """The rows [first_row, first_row + len(weight)) of one table, as this rank holds them: live tensors."""

    table: str
    first_row: int
    weight: Tensor  # [rows, allocated columns]
    optimizer: dict[str, Tensor]  # state name → [rows, …]
    saved: bool = True  # by this rank; rank 0 saves what all ranks hold


@dataclass
class Placed:
    """A model on its ranks."""

    network: nn.Module  # call this
    towers: nn.ModuleList  # the replicated part
    shards: list[Shard]  # this rank's
    tower_optimizer: torch.optim.Optimizer
    table_optimizer: torch.optim.Optimizer | None = None  # of the replicated tables, where there are any
    settings: OptimizerSettings = field(default_factory=OptimizerSettings)
    world: World | None = None  # None: alone

    def __post_init__(self) -> None:
        self._kernel_rates = [
            (kernel, kernel.get_learning_rate())
            for kernel in _kernels(self.network)
            if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen)
        ]
        kernels = list(_kernels(self.network))
        self._dense_kernels = [
            kernel for kernel in kernels if isinstance(kernel, DenseTableBatchedEmbeddingBagsCodegen)
        ]
        groups = self.table_optimizer.param_groups if self.table_optimizer else []
        self._group_rates = [(group, group["lr"]) for group in groups]
        self._factor = 1.0
        self.num_updates = 0  # that this model has had, those of the run that it continues included
        self.network.register_forward_pre_hook(self._before_forward)

    def learn(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, at the rates of the step that the network was called with."""
        self.tower_optimizer.zero_grad(set_to_none=True)
        for kernel in self._dense_kernels:
            kernel.weights.grad = None  # the tables are views of it
        loss.backward()  # sharded tables update in here
        self._average()
        if self.settings.towers.clip_norm:
            nn.utils.clip_grad_norm_(self.towers.parameters(), self.settings.towers.clip_norm)
        self.tower_optimizer.step()
        if self.table_optimizer:
            self.table_optimizer.step()
        self.num_updates += 1

    def _average(self) -> None:
        """The mean over the ranks of the gradients of all that every rank holds, in one sum.

        Not by DDP: it puts gradients into its buckets as the first backward pass of the process happens to give them, and
        a sum over more than two ranks rounds by the place in the bucket, so that a resumed run would end with other bits.
        """
        if self.world is None or self.world.size == 1:
            return
        held = [parameter.grad for parameter in self.towers.parameters()]
        held += [kernel.weights.grad for kernel in self._dense_kernels]
        gradients = [gradient for gradient in held if gradient is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(self.world.size)
        parts = self.world.sum(flat).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _before_forward(self, _network: nn.Module, batch_and_step: tuple[Any, ...]) -> None:
        """Trap: FBGEMM's kernels read the rate of a backward pass when they run forwards.

        And they count their forward passes, those of validation too and from 0 after a restart, for Adam's correction
        of its bias: here that count is the number of updates.
        """
        run_step = batch_and_step[1]
        if run_step is not None:
            self._set_rates(run_step)
            for kernel, _ in self._kernel_rates:
                kernel.iter.fill_(self.num_updates)
                kernel.iter_cpu.fill_(self.num_updates)

    def _set_rates(self, run_step: int) -> None:
        towers, embeddings = self.settings.towers, self.settings.embeddings
        for group in self.tower_optimizer.param_groups:
            group["lr"] = towers.lr * towers.schedule.factor(run_step)
        factor = embeddings.schedule.factor(run_step)
        if factor != self._factor:
            for kernel, rate in self._kernel_rates:
                kernel.set_learning_rate(rate * factor)
            for group, rate in self._group_rates:
                group["lr"] = rate * factor
            self._factor = factor


def place(
    model: EntireSpaceModel,
    fields: Sequence[ManifestField],
    embedding: EmbeddingSettings,
    optimizer: OptimizerSettings,
    sharding: ShardingSettings,
    world: World,
) -> Placed:
    """Shard the tables of `model` over `world`, fill them with their initial values, and give the towers their optimizer."""
    optimizers.fuse(model, embedding, optimizer.embeddings)
    plan = plan_of(fields, embedding, sharding, world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what TorchRec does with torch's deprecated parts
        network = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=world.device,
            plan=plan,
            # Every index was compared with its table as it was read (training.row_groups).
            sharders=[EmbeddingBagCollectionSharder(fused_params={"bounds_check_mode": BoundsCheckMode.NONE})],
            init_data_parallel=False,  # `Placed` averages gradients itself
        )
        network.to(world.device)
        shards = _shards(network)
    for module in network.modules():
        if isinstance(module, DistributedDataParallel):  # TorchRec's, around replicated tables
            module.require_backward_grad_sync = False
    replicated = _replicated(network)
    table_optimizer = optimizers.dense(replicated, embedding, optimizer.embeddings) if replicated else None
    if table_optimizer:
        # Its gradient is registered in an old way, and right: tests compare it with torch's own.
        warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen")
        shards += [
            Shard(name, 0, table.detach(), optimizers.state_of(table_optimizer, table), saved=world.rank == 0)
            for name, table in replicated.items()
        ]
    _leave_weights_without_gradient(network)
    if world.size > 1 and world.device.type == "cpu" and _cuts_rows(plan):
        # Gloo's reduce-scatter needs equal batch sizes.
        model.most_rows = world.max
    for shard in shards:
        shard.weight.zero_()
        for start in range(0, len(shard.weight), _ROWS_AT_A_TIME):  # a table at once would be there twice
            part = shard.weight[start : start + _ROWS_AT_A_TIME, : embedding.dim_of(shard.table)]
            first_row, (num_rows, dim) = shard.first_row + start, part.shape
            values = uniform_rows(model.seed, shard.table, first_row, num_rows, dim, embedding.init_bound)
            part.copy_(torch.from_numpy(values))
    adam = optimizers.adam(model.towers.parameters(), optimizer.towers)
    return Placed(network, model.towers, shards, adam, table_optimizer, optimizer, world)


def _cuts_rows(plan: ShardingPlan) -> bool:
    modules = [module for module in plan.plan.values() if isinstance(module, EmbeddingModuleShardingPlan)]
    return any(table.sharding_type == "row_wise" for module in modules for table in module.values())


def _kernels(network: nn.Module) -> Iterator[nn.Module]:
    """FBGEMM's kernels: each holds the tables that share a scope, a sharding and an optimizer's options."""
    for module in network.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            for lookup in module._lookups:
                for kernel in lookup.modules():
                    if isinstance(
                        kernel, SplitTableBatchedEmbeddingBagsCodegen | DenseTableBatchedEmbeddingBagsCodegen
                    ):
                        yield kernel


def _leave_weights_without_gradient(network: nn.Module) -> None:
    """FBGEMM computes the gradient of the log's weights on every backward pass, unless told that nobody wants it
    (measured: a tenth of a step)."""
    for kernel in _kernels(network):
        offsets = kernel.D_offsets  # one more than features
        assert isinstance(offsets, Tensor)
        unwanted = torch.zeros(len(offsets) - 1, dtype=torch.int32, device=offsets.device)
        kernel.forward = partial(kernel.forward, feature_requires_grad=unwanted)


def _shards(network: DistributedModelParallel) -> list[Shard]:
    """This rank's rows, as views of FBGEMM's own buffers: what is written to them is what trains on."""
    states = network.fused_optimizer.state_dict()["state"]
    shards = []
    for name, weight in network.state_dict().items():
        table = _table_of(name)
        if table is None or not hasattr(weight, "local_shards"):
            continue
        for number, local in enumerate(weight.local_shards()):
            state = {
                key.removeprefix(f"{table}."): value.local_shards()[number].tensor
                for key, value in states.get(name, {}).items()
                if hasattr(value, "local_shards")
            }
            shards.append(Shard(table, local.metadata.shard_offsets[0], local.tensor.detach(), state))
    return shards


def _replicated(network: DistributedModelParallel) -> dict[str, Tensor]:
    """table → its rows, for those that every rank holds."""
    sharded = {name for name, weight in network.state_dict().items() if hasattr(weight, "local_shards")}
    return {
        table: weight
        for name, weight in network.named_parameters()
        if (table := _table_of(name)) is not None and name not in sharded
    }


def _table_of(parameter: str) -> str | None:
    """`context.tables.embedding_bags.user_id.weight` → `user_id`."""
    parts = parameter.split(".")
    return parts[3] if parts[1:3] == ["tables", "embedding_bags"] else None
