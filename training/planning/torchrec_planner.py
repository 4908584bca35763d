"""Ask TorchRec's own planner for a placement of the tables on a cluster.

It may choose between the placements that the trainer knows (training.distributed.sharding). Its costs are TorchRec's, from the cluster's
bandwidths and the mean lookups of each field.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan

from pipeline.dataset.manifest import Manifest
from training.distributed import optimizers
from training.distributed.settings import SHARDINGS
from training.distributed.sharding import lookups_per_impression
from training.model.entire_space import EntireSpaceModel
from training.model.graph import Graph
from training.model.own_tables import field_of
from training.planning.cluster import Cluster
from training.planning.memory_estimate import TablePlan, tables_of_model
from training.run.settings import TrainSettings

_PER_MS = 1e-3
_KERNELS = {"table_wise": "fused", "row_wise": "fused", "data_parallel": "dense"}


def propose(
    settings: TrainSettings, manifest: Manifest, graph: Graph, cluster: Cluster, free_bytes: float
) -> dict[str, str] | None:
    """Return field → placement of its table, for `free_bytes` on each rank; None where the planner finds no way to fit the tables."""
    model = EntireSpaceModel(manifest, graph, settings.embedding, settings.model, settings.seed)
    optimizers.fuse_into_backward(model, settings.embedding, settings.optimizer.embeddings)
    device, kinds = cluster.device, list(SHARDINGS)
    if cluster.is_cpu:
        kinds.remove("row_wise")  # which the planner refuses on CPU, and the trainer does not
    if settings.optimizer.embeddings.name == "adam":
        kinds.remove("data_parallel")
    host_bytes = cluster.host_share_bytes
    constraints = {
        entry.name: ParameterConstraints(
            sharding_types=kinds,
            compute_kernels=[_KERNELS[kind] for kind in kinds],
            pooling_factors=[lookups_per_impression(entry)],
            is_weighted=True,
        )
        for entry in tables_of_model(manifest, settings)
    }
    with _quietly():
        topology = Topology(
            world_size=cluster.num_ranks,
            local_world_size=cluster.per_host,
            compute_device="cpu" if cluster.is_cpu else "cuda",
            hbm_cap=0 if cluster.is_cpu else max(0, int(free_bytes)),
            ddr_cap=max(0, int(free_bytes if cluster.is_cpu else host_bytes)),
            hbm_mem_bw=device.memory_bytes_per_s * _PER_MS,
            ddr_mem_bw=device.memory_bytes_per_s * _PER_MS if cluster.is_cpu else 51e9 * _PER_MS,
            intra_host_bw=device.link_bytes_per_s * _PER_MS,
            inter_host_bw=cluster.network_bytes_per_s * _PER_MS,
        )
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=max(1, settings.plan.batch_size // cluster.num_ranks),
            constraints=constraints,
            storage_reservation=FixedPercentageStorageReservation(0.0),
            stats=NoopEmbeddingStats(),
            debug=False,
        )
        try:
            plan = planner.plan(model, [EmbeddingBagCollectionSharder()])
        except PlannerError:
            return None
    modules = [module for module in plan.plan.values() if isinstance(module, EmbeddingModuleShardingPlan)]
    placements = {name: table.sharding_type for module in modules for name, table in module.items()}
    # A field has one placement, where each head has its own table of it: that of head 0.
    return {name: kind for name, kind in placements.items() if field_of(name) == name}


def settings_to_adopt(proposed: Mapping[str, str], tables: Sequence[TablePlan]) -> list[str]:
    """List the settings that make the trainer place every table as `proposed`, where its own `tables` differ."""
    planned = {table.field.name: table.kind for table in tables}
    return [f"sharding.tables.{name}={kind}" for name, kind in proposed.items() if kind != planned[name]]


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
