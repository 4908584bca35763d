"""TorchRec's planner: a placement by estimated costs, between the kinds that the trainer knows (`sharding.plan=torchrec`)."""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import xxhash
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError
from training.distributed.settings import SHARDINGS, ShardingSettings
from training.distributed.sharding import lookups_per_impression
from training.distributed.world import World
from training.model.entire_space import EntireSpaceModel
from training.model.own_tables import field_of

_KERNELS = {"table_wise": "fused", "row_wise": "fused", "data_parallel": "dense"}
#: What the tables may take of a GPU's memory; towers, batches and libraries take the rest.
_PART_OF_MEMORY = 0.7


def kinds_for(device: str, optimizer: str) -> list[str]:
    """Return the placements that the planner may choose from for tables with this optimizer."""
    kinds = list(SHARDINGS)
    if device == "cpu":
        kinds.remove("row_wise")  # which the planner refuses on CPU, and the trainer does not
    if optimizer == "adam":
        kinds.remove("data_parallel")
    return kinds


def search_placement(
    model: EntireSpaceModel,
    tables: Sequence[ManifestField],
    kinds_of: Callable[[ManifestField], list[str]],
    topology: Callable[[], Topology],
    batch_size: int,
) -> ShardingPlan | None:
    """Return the planner's plan for a batch of `batch_size` a rank; None where it finds no way to fit the tables."""
    constraints = {
        entry.name: ParameterConstraints(
            sharding_types=kinds_of(entry),
            compute_kernels=[_KERNELS[kind] for kind in kinds_of(entry)],
            pooling_factors=[lookups_per_impression(entry)],
            is_weighted=True,
        )
        for entry in tables
    }
    with _quietly():
        planner = EmbeddingShardingPlanner(
            topology=topology(),
            batch_size=batch_size,
            constraints=constraints,
            storage_reservation=FixedPercentageStorageReservation(0.0),
            stats=NoopEmbeddingStats(),
            debug=False,
        )
        try:
            return planner.plan(model, [EmbeddingBagCollectionSharder()])
        except PlannerError:
            return None


def plan_by_torchrec(
    model: EntireSpaceModel,
    tables: Sequence[ManifestField],
    settings: ShardingSettings,
    optimizer: str,
    batch_size: int,
    world: World,
) -> ShardingPlan:
    """Plan the placement of every table; those that `settings.tables` names are placed as it says.

    Every rank plans for itself, from the same numbers. Raises InputError, on all ranks, where the planner finds nothing, or the
    ranks' plans differ.
    """
    kinds = kinds_for(world.device.type, optimizer)

    def kinds_of(entry: ManifestField) -> list[str]:
        named = settings.tables.get(field_of(entry.name))
        return kinds if named is None else [named]

    def topology() -> Topology:
        if world.device.type == "cpu":
            return Topology(world_size=world.size, local_world_size=world.size, compute_device="cpu", hbm_cap=0)
        memory = torch.cuda.get_device_properties(world.device).total_memory
        per_host = min(world.size, torch.cuda.device_count())
        return Topology(
            world_size=world.size,
            local_world_size=per_host,
            compute_device="cuda",
            hbm_cap=int(memory * _PART_OF_MEMORY),
        )

    with world.agreeing():
        for name, kind in settings.tables.items():
            if kind not in kinds:
                raise InputError(
                    f"sharding.plan=torchrec: on {world.device.type} TorchRec's planner takes {' and '.join(kinds)}, and the settings "
                    f"place {name}={kind}; use sharding.plan=settings."
                )
        plan = search_placement(model, tables, kinds_of, topology, max(1, batch_size // world.size))
        if plan is None:
            raise InputError(
                "sharding.plan=torchrec: TorchRec's planner finds no placement that fits into the ranks' memory; use more ranks, or "
                "sharding.plan=settings."
            )
    found = xxhash.xxh3_64_intdigest(json.dumps(_described(plan)).encode()) >> 1
    if len({row[0] for row in world.gather([found])}) > 1:
        raise InputError(
            "sharding.plan=torchrec: the planner places the tables differently on different ranks, whose GPUs are not alike; use "
            "sharding.plan=settings."
        )
    return plan


def kinds_in(plan: ShardingPlan) -> dict[str, str]:
    """Return table → its kind of placement."""
    modules = [module for module in plan.plan.values() if isinstance(module, EmbeddingModuleShardingPlan)]
    return {name: table.sharding_type for module in modules for name, table in module.items()}


def _described(plan: ShardingPlan) -> list[list[object]]:
    modules = [module for module in plan.plan.values() if isinstance(module, EmbeddingModuleShardingPlan)]
    return sorted([name, table.sharding_type, table.ranks] for module in modules for name, table in module.items())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the planner's log: its search, and errors that it raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
