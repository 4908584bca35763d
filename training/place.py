"""Where everything lives: tables sharded over the ranks by TorchRec, towers replicated under DDP, and their optimizers.

Tables are placed whole (table-wise) by a plan made here, since TorchRec's planner needs a GPU topology; they update
inside the backward pass (FBGEMM's fused optimizers), the towers by Adam after it. One rank takes the same road.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingEnv,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from pipeline.manifest import InputError, ManifestField
from training.embeddings import EmbeddingSettings, allocated, rowwise_lr
from training.init_values import uniform_rows
from training.model import EntireSpaceModel
from training.world import World

#: What FBGEMM's fused kernels have, by device.
EMBEDDING_OPTIMIZERS = {
    "cpu": ("rowwise_adagrad", "adagrad", "sgd"),
    "cuda": ("rowwise_adagrad", "adagrad", "sgd", "adam"),
}
_CLASSES = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


@dataclass
class EmbeddingOptimizerSettings:
    """The group `optimizer.embeddings`."""

    name: str = "rowwise_adagrad"
    lr: float = 0.05
    eps: float = 1e-8


@dataclass
class TowerOptimizerSettings:
    """The group `optimizer.towers`: Adam."""

    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8


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


@dataclass(frozen=True)
class Shard:
    """The rows [first_row, first_row + len(weight)) of one table, as this rank holds them: live tensors."""

    table: str
    first_row: int
    weight: Tensor  # [rows, allocated columns]
    optimizer: dict[str, Tensor]  # state name → [rows, …]


@dataclass
class Placed:
    """A model on its ranks."""

    network: nn.Module  # call this
    towers: nn.ModuleList  # the replicated part
    shards: list[Shard]  # this rank's
    tower_optimizer: torch.optim.Optimizer


def place(
    model: EntireSpaceModel,
    fields: Sequence[ManifestField],
    embedding: EmbeddingSettings,
    optimizer: OptimizerSettings,
    world: World,
) -> Placed:
    """Shard the tables of `model` over `world`, fill them with their initial values, and wrap the towers in DDP."""
    _fuse_optimizers(model, embedding, optimizer.embeddings)
    owners = assign(fields, embedding, world.size)
    plan = ShardingPlan(
        {
            f"{scope}.tables": EmbeddingModuleShardingPlan(
                {
                    entry.name: _whole(entry, allocated(embedding.dim_of(entry.name)), owners[entry.name], world)
                    for entry in fields
                    if entry.scope == scope
                }
            )
            for scope in ("context", "impression")
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchRec passes DDP a deprecated option
        network = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=world.device,
            plan=plan,
            sharders=[EmbeddingBagCollectionSharder()],
        )
        shards = _shards(network)
    _leave_weights_without_gradient(network)
    for shard in shards:
        dim = embedding.dim_of(shard.table)
        values = uniform_rows(
            model.seed, shard.table, shard.first_row, len(shard.weight), dim, bound=embedding.init_bound
        )
        shard.weight.zero_()
        shard.weight[:, :dim] = torch.from_numpy(values)
    towers = optimizer.towers
    adam = torch.optim.Adam(
        model.towers.parameters(), lr=towers.lr, betas=(towers.betas[0], towers.betas[1]), eps=towers.eps, fused=True
    )
    return Placed(network, model.towers, shards, adam)


def assign(fields: Sequence[ManifestField], embedding: EmbeddingSettings, world_size: int) -> dict[str, int]:
    """field → rank: the most expensive table first, each to the rank that has least so far.

    A table's cost is its share of all memory (rows x columns) plus its share of all lookups.
    """
    columns = {entry.name: allocated(embedding.dim_of(entry.name)) for entry in fields}
    memory = {entry.name: entry.num_rows * columns[entry.name] for entry in fields}
    lookups = {entry.name: _lookups_per_impression(entry) * columns[entry.name] for entry in fields}
    cost = {
        entry.name: memory[entry.name] / sum(memory.values()) + lookups[entry.name] / sum(lookups.values())
        for entry in fields
    }
    load = [0.0] * world_size
    owners: dict[str, int] = {}
    for name in sorted(cost, key=lambda name: (-cost[name], name)):
        owners[name] = min(range(world_size), key=load.__getitem__)
        load[owners[name]] += cost[name]
    return owners


def _lookups_per_impression(entry: ManifestField) -> float:
    """Ali-CCP's means (DESIGN §2): 518 values a context, 58 impressions a context, 13.4 values an impression."""
    if entry.scope == "context":
        return 1 / 58 if entry.arity == "one" else 125 / 58
    return 1.0 if entry.arity == "one" else 1.7


def _fuse_optimizers(
    model: EntireSpaceModel, embedding: EmbeddingSettings, settings: EmbeddingOptimizerSettings
) -> None:
    for scope in (model.context, model.impression):
        for name, parameter in zip(scope.names, scope.tables.parameters(), strict=True):
            options: dict[str, Any] = {"lr": settings.lr}
            if settings.name != "sgd":
                options["eps"] = settings.eps
            if settings.name == "rowwise_adagrad":
                dim = embedding.dim_of(name)
                options["lr"] = rowwise_lr(settings.lr, dim)
                # eps stands beside the root of the same mean.
                options["eps"] = settings.eps * math.sqrt(dim / allocated(dim))
            apply_optimizer_in_backward(_CLASSES[settings.name], [parameter], options)


def _leave_weights_without_gradient(network: nn.Module) -> None:
    """FBGEMM computes the gradient of the log's weights on every backward pass, unless told that nobody wants it
    (measured: a tenth of a step)."""
    sharded = [module for module in network.modules() if isinstance(module, ShardedEmbeddingBagCollection)]
    lookups = [lookup for module in sharded for lookup in module._lookups]
    for kernel in (module for lookup in lookups for module in lookup.modules()):
        if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
            unwanted = torch.zeros(len(kernel.feature_table_map), dtype=torch.int32, device=kernel.current_device)
            kernel.forward = partial(kernel.forward, feature_requires_grad=unwanted)


def _whole(entry: ManifestField, columns: int, owner: int, world: World) -> ParameterSharding:
    shard = ShardMetadata(
        shard_offsets=[0, 0],
        shard_sizes=[entry.num_rows, columns],
        placement=f"rank:{owner}/{_placement(owner, world)}",
    )
    return ParameterSharding(
        sharding_type="table_wise",
        compute_kernel="fused",
        ranks=[owner],
        sharding_spec=EnumerableShardingSpec([shard]),
    )


def _placement(owner: int, world: World) -> str:
    return "cpu" if world.device.type == "cpu" else f"cuda:{owner % max(1, torch.cuda.device_count())}"


def _shards(network: DistributedModelParallel) -> list[Shard]:
    """This rank's rows, as views of FBGEMM's own buffers: what is written to them is what trains on."""
    states = network.fused_optimizer.state_dict()["state"]
    shards = []
    for name, weight in network.state_dict().items():
        table = _table_of(name)
        if table is None:
            continue
        for number, local in enumerate(weight.local_shards()):
            state = {
                key.removeprefix(f"{table}."): value.local_shards()[number].tensor
                for key, value in states.get(name, {}).items()
                if hasattr(value, "local_shards")
            }
            shards.append(Shard(table, local.metadata.shard_offsets[0], local.tensor.detach(), state))
    return shards


def _table_of(parameter: str) -> str | None:
    """`context.tables.embedding_bags.user_id.weight` → `user_id`."""
    parts = parameter.split(".")
    return parts[3] if parts[1:3] == ["tables", "embedding_bags"] else None
