"""Where everything lives: tables sharded over the ranks by TorchRec, towers on every rank, and their optimizers.

Sharded tables learn inside their backward pass (FBGEMM's fused optimizers), towers and replicated tables after it. One
rank takes the same road.
"""

import warnings
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbeddingBag
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv, ShardingPlan

from pipeline.dataset.manifest import ManifestField
from training.distributed import optimizers
from training.distributed.exchange import Kernel
from training.distributed.id_messages import TablePlacement
from training.distributed.peer_exchange import PeerExchange
from training.distributed.settings import OptimizerSettings, ShardingSettings
from training.distributed.sharded_model import Shard, ShardedModel
from training.distributed.sharding import plan_of, row_block
from training.distributed.tower_gradients import data_parallel
from training.distributed.world import World
from training.model.counter_random import uniform_rows
from training.model.entire_space import EntireSpaceModel
from training.model.settings import EmbeddingSettings

_ROWS_AT_A_TIME = 1 << 18
_SCOPES = ("context", "impression")  # in the order of `IdExchange`


def shard_model(
    model: EntireSpaceModel,
    fields: Sequence[ManifestField],
    embedding: EmbeddingSettings,
    optimizer: OptimizerSettings,
    sharding: ShardingSettings,
    world: World,
) -> ShardedModel:
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
            # Every index was compared with its table as it was read (training.feed.row_groups).
            sharders=[EmbeddingBagCollectionSharder(fused_params={"bounds_check_mode": BoundsCheckMode.NONE})],
            init_data_parallel=False,  # `ShardedModel` sums gradients itself
        )
        network.to(world.device)
        shards = _shards(network)
    replicated = _replicated(network)
    table_optimizer = optimizers.dense(replicated, embedding, optimizer.embeddings) if replicated else None
    if table_optimizer:
        # Its gradient is registered in an old way, and right: tests compare it with torch's own.
        warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen")
        shards += [
            Shard(name, 0, table.detach(), optimizers.state_of(table_optimizer, table), saved=world.rank == 0)
            for name, table in replicated.items()
        ]
    for shard in shards:
        shard.weight.zero_()
        for start in range(0, len(shard.weight), _ROWS_AT_A_TIME):  # a table at once would be there twice
            part = shard.weight[start : start + _ROWS_AT_A_TIME, : embedding.dim_of(shard.table)]
            first_row, (num_rows, dim) = shard.first_row + start, part.shape
            values = uniform_rows(model.seed, shard.table, first_row, num_rows, dim, embedding.init_bound)
            part.copy_(torch.from_numpy(values))
    exchange = PeerExchange(_placements(fields, embedding, plan), _kernels(model), world)
    towers = model.towers
    adam = optimizers.adam(towers.parameters(), optimizer.towers)
    model.towers = data_parallel(towers, world)
    return ShardedModel(model, towers, exchange, shards, adam, table_optimizer, optimizer, world)


def _placements(
    fields: Sequence[ManifestField], embedding: EmbeddingSettings, plan: ShardingPlan
) -> list[list[TablePlacement]]:
    """Return the placements of the tables of contexts and of impressions, in catalogue order."""
    placements: dict[str, list[TablePlacement]] = {scope: [] for scope in _SCOPES}
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
    return [placements[scope] for scope in _SCOPES]


def _kernels(model: EntireSpaceModel) -> list[Kernel]:
    """FBGEMM's kernels of this rank: each holds the tables that share a scope, a sharding and an optimizer's options."""
    kernels = []
    for scope, embeddings in enumerate((model.context, model.impression)):
        for lookup in embeddings.tables._lookups:
            for part in lookup.modules():
                if isinstance(part, BaseBatchedEmbeddingBag):
                    tables = part.config.embedding_tables
                    places = [embeddings.names.index(table.name) for table in tables]
                    serves_all = not isinstance(part.emb_module, DenseTableBatchedEmbeddingBagsCodegen)
                    _leave_weights_without_gradient(part.emb_module)
                    kernels.append(
                        Kernel(part.emb_module, scope, places, [table.local_cols for table in tables], serves_all)
                    )
    return kernels


def _leave_weights_without_gradient(kernel: nn.Module) -> None:
    """FBGEMM computes the gradient of the log's weights on every backward pass, unless told that nobody wants it
    (measured: a tenth of a step)."""
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
