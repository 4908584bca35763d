"""A model on its ranks: tables sharded by TorchRec, towers on every rank, and their optimizers.

Sharded tables learn inside their backward pass (FBGEMM's fused optimizers), towers and replicated tables after it. One
rank takes the same code path.
"""

import warnings
from collections.abc import Sequence

import torch
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from pipeline.dataset.manifest import ManifestField
from training.distributed import optimizers
from training.distributed.exchange import Exchange, Kernel, PerScope, Scope
from training.distributed.id_messages import TablePlacement
from training.distributed.peer_exchange import PeerExchange
from training.distributed.planner import plan_by_torchrec
from training.distributed.settings import OptimizerSettings, ShardingSettings
from training.distributed.sharded_model import Shard, ShardedModel
from training.distributed.sharding import plan_of, row_block
from training.distributed.torchrec_exchange import ShardedTables, TorchRecExchange
from training.distributed.torchrec_internals import (
    distribute,
    leave_weights_without_gradient,
    local_rows,
    lookup_kernels,
    replicated_tables,
)
from training.distributed.tower_gradients import data_parallel
from training.distributed.world import World
from training.model.counter_random import uniform_rows
from training.model.entire_space import EntireSpaceModel
from training.model.settings import EmbeddingSettings
from training.model.towers import TowerStack

_ROWS_AT_A_TIME = 1 << 18


def shard_model(
    model: EntireSpaceModel,
    fields: Sequence[ManifestField],
    embedding: EmbeddingSettings,
    optimizer: OptimizerSettings,
    sharding: ShardingSettings,
    batch_size: int,
    world: World,
) -> ShardedModel:
    """Shard the tables of `model` over `world`, fill them with their initial values, and give the towers their optimizer.

    `batch_size`, over all ranks, is what TorchRec's planner counts with, where the settings ask for it.
    """
    optimizers.fuse_into_backward(model, embedding, optimizer.embeddings)
    if sharding.plan == "torchrec":
        plan = plan_by_torchrec(model, fields, sharding, optimizer.embeddings.name, batch_size, world)
    else:
        plan = plan_of(fields, embedding, sharding, world)
    network = distribute(model, plan, world.device)
    shards = [Shard(*rows) for rows in local_rows(network)]
    replicated = replicated_tables(network)
    table_optimizer = (
        optimizers.replicated_optimizer(replicated, embedding, optimizer.embeddings) if replicated else None
    )
    if table_optimizer:
        # FBGEMM registers its gradient in an old way, of which torch warns. It is right: tests compare it with torch's own.
        warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen")
        shards += [
            Shard(name, 0, table.detach(), optimizers.replicated_state(table_optimizer, table), saved=world.rank == 0)
            for name, table in replicated.items()
        ]
    for shard in shards:
        shard.weight.zero_()
        for start in range(0, len(shard.weight), _ROWS_AT_A_TIME):  # a whole table at once would take its memory twice
            part = shard.weight[start : start + _ROWS_AT_A_TIME, : embedding.dim_of(shard.table)]
            first_row, (num_rows, dim) = shard.first_row + start, part.shape
            values = uniform_rows(model.seed, shard.table, first_row, num_rows, dim, embedding.init_bound)
            part.copy_(torch.from_numpy(values))
    exchange = _exchange(model, fields, embedding, sharding, plan, world)
    towers = model.towers
    assert isinstance(towers, TowerStack)
    adam = optimizers.tower_optimizer(towers.parameters(), optimizer.towers)
    model.towers = data_parallel(towers, world)
    return ShardedModel(model, towers, exchange, shards, adam, table_optimizer, optimizer, world)


def _exchange(
    model: EntireSpaceModel,
    fields: Sequence[ManifestField],
    embedding: EmbeddingSettings,
    sharding: ShardingSettings,
    plan: ShardingPlan,
    world: World,
) -> Exchange:
    kernels, placements = _kernels(model), _placements(fields, embedding, plan)
    if sharding.exchange_of(world.device.type, world.size) == "peer":
        return PeerExchange(placements, kernels, world)
    scopes = (ShardedTables(scope.tables, scope.names, scope.dims) for scope in (model.context, model.impression))
    has_row_wise = any(placement.kind == "row_wise" for of_scope in placements for placement in of_scope)
    return TorchRecExchange(PerScope(*scopes), kernels, world, has_row_wise)


def _placements(
    fields: Sequence[ManifestField], embedding: EmbeddingSettings, plan: ShardingPlan
) -> PerScope[list[TablePlacement]]:
    """Return the placements of the tables of contexts and of impressions, in catalogue order."""
    placements: dict[str, list[TablePlacement]] = {"context": [], "impression": []}
    for entry in fields:
        modules = plan.plan[f"{entry.scope}.tables"]
        assert isinstance(modules, EmbeddingModuleShardingPlan)
        table = modules[entry.name]
        assert table.ranks is not None
        placements[entry.scope].append(
            TablePlacement(
                table.sharding_type,
                owner=table.ranks[0] if table.sharding_type == "table_wise" else None,
                block=row_block(entry.num_rows, len(table.ranks)),
                width=embedding.dim_of(entry.name),
            )
        )
    return PerScope(contexts=placements["context"], impressions=placements["impression"])


def _kernels(model: EntireSpaceModel) -> list[Kernel]:
    """Return FBGEMM's kernels of this rank, those of contexts first."""
    kernels = []
    for scope, embeddings in ((Scope.CONTEXT, model.context), (Scope.IMPRESSION, model.impression)):
        for kernel in lookup_kernels(embeddings.tables):
            leave_weights_without_gradient(kernel.module)
            fields = [embeddings.names.index(table) for table in kernel.tables]
            kernels.append(Kernel(kernel.module, scope, fields, kernel.allocated, not kernel.is_replicated))
    return kernels
