"""The plan that TorchRec carries out: the rows of each table that each rank stores.

    table_wise     a table lives on one rank; ids travel to it and pooled rows come back
    row_wise       every rank stores a range of the table's rows and sums its part of each bag
    data_parallel  every rank stores the whole table, and gradients are summed like the towers'

The plan is made by hand: TorchRec's planner wants a GPU topology, and on CPU it refuses row-wise tables.
"""

from collections.abc import Mapping, Sequence

import torch
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)

from pipeline.dataset.manifest import ManifestField
from training.distributed.settings import ShardingSettings
from training.distributed.world import World
from training.model.settings import EmbeddingSettings, allocated_dim


def plan_of(
    fields: Sequence[ManifestField], embedding: EmbeddingSettings, settings: ShardingSettings, world: World
) -> ShardingPlan:
    """Plan the placement of every table, by the names of the model's two collections."""
    kinds = {entry.name: settings.kind_of(entry, allocated_dim(embedding.dim_of(entry.name))) for entry in fields}
    owners = assign([entry for entry in fields if kinds[entry.name] == "table_wise"], embedding, world.size)
    return ShardingPlan(
        {
            f"{scope}.tables": EmbeddingModuleShardingPlan(
                {
                    entry.name: _parameter_sharding(
                        kinds[entry.name], entry, allocated_dim(embedding.dim_of(entry.name)), owners, world
                    )
                    for entry in fields
                    if entry.scope == scope
                }
            )
            for scope in ("context", "impression")
        }
    )


def assign(fields: Sequence[ManifestField], embedding: EmbeddingSettings, world_size: int) -> dict[str, int]:
    """Assign whole tables to ranks, field → rank: the most expensive first, each to the rank that has least of what it needs.

    A table costs memory (rows x columns), lookups, and pooled rows that travel. Each cost counts relative to its sum over
    all tables. The dot product of costs and loads balances the three together (Panigrahy et al. 2011, "Heuristics for vector
    bin packing").
    """
    columns = {entry.name: allocated_dim(embedding.dim_of(entry.name)) for entry in fields}
    costs = [
        {entry.name: amount(entry) * columns[entry.name] for entry in fields}
        for amount in (lambda entry: entry.num_rows, lookups_per_impression, bags_per_impression)
    ]
    totals = [sum(cost.values()) for cost in costs]
    relative_costs = {
        entry.name: [cost[entry.name] / total for cost, total in zip(costs, totals, strict=True)] for entry in fields
    }
    loads = [[0.0] * len(costs) for _ in range(world_size)]
    owners: dict[str, int] = {}
    for name in sorted(relative_costs, key=lambda name: (-sum(relative_costs[name]), name)):
        needs = relative_costs[name]
        burdens = [sum(load * need for load, need in zip(of_rank, needs, strict=True)) for of_rank in loads]
        owner = burdens.index(min(burdens))
        loads[owner] = [load + need for load, need in zip(loads[owner], needs, strict=True)]
        owners[name] = owner
    return owners


def lookups_per_impression(entry: ManifestField) -> float:
    """Estimate the rows of `entry` that an impression looks up, from the means of Ali-CCP.

    A context has 518 values and 58 impressions; an impression has 13.4 values.
    """
    if entry.scope == "context":
        return 1 / 58 if entry.arity == "one" else 125 / 58
    return 1.0 if entry.arity == "one" else 1.7


def bags_per_impression(entry: ManifestField) -> float:
    """Estimate the bags of `entry` that an impression pools: one a context, or one an impression."""
    return 1.0 if entry.scope == "impression" else 1 / 58


def row_block(num_rows: int, num_ranks: int) -> int:
    """Return the rows of a row-wise table that a rank stores, the last ranks fewer: id i is on rank i // block."""
    return -(-num_rows // num_ranks)


def _parameter_sharding(
    kind: str, entry: ManifestField, columns: int, owners: Mapping[str, int], world: World
) -> ParameterSharding:
    if kind == "data_parallel":
        everyone = list(range(world.size))
        return ParameterSharding(sharding_type=kind, compute_kernel="dense", ranks=everyone, sharding_spec=None)
    block = row_block(entry.num_rows, world.size)
    ranges = (
        [(owners[entry.name], 0, entry.num_rows)]
        if kind == "table_wise"
        else [
            (rank, min(rank * block, entry.num_rows), min((rank + 1) * block, entry.num_rows))
            for rank in range(world.size)
        ]
    )
    shards = [
        ShardMetadata(
            shard_offsets=[first, 0],
            shard_sizes=[last - first, columns],
            placement=f"rank:{rank}/{_device_of(rank, world)}",
        )
        for rank, first, last in ranges
    ]
    return ParameterSharding(
        sharding_type=kind,
        compute_kernel="fused",
        ranks=[rank for rank, _, _ in ranges],
        sharding_spec=EnumerableShardingSpec(shards),
    )


def _device_of(rank: int, world: World) -> str:
    return "cpu" if world.device.type == "cpu" else f"cuda:{rank % max(1, torch.cuda.device_count())}"
