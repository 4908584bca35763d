"""Ask TorchRec's own planner for a placement of the tables on a cluster.

It may choose between the placements that the trainer knows (training.distributed.planner). Its costs are TorchRec's, from the
cluster's bandwidths and the mean lookups of each field.
"""

from collections.abc import Mapping, Sequence

from torchrec.distributed.planner import Topology

from pipeline.dataset.manifest import Manifest
from training.distributed import optimizers
from training.distributed.planner import kinds_for, kinds_in, search_placement
from training.model.entire_space import EntireSpaceModel
from training.model.graph import Graph
from training.model.own_tables import field_of
from training.planning.cluster import Cluster
from training.planning.memory_estimate import TablePlan, tables_of_model
from training.run.settings import TrainSettings

_PER_MS = 1e-3


def propose(
    settings: TrainSettings, manifest: Manifest, graph: Graph, cluster: Cluster, free_bytes: float
) -> dict[str, str] | None:
    """Return field → placement of its table, for `free_bytes` on each rank; None where the planner finds no way to fit the tables."""
    model = EntireSpaceModel(manifest, graph, settings.embedding, settings.model, settings.seed)
    optimizers.fuse_into_backward(model, settings.embedding, settings.optimizer.embeddings)
    device, host_bytes = cluster.device, cluster.host_share_bytes
    kinds = kinds_for("cpu" if cluster.is_cpu else "cuda", settings.optimizer.embeddings.name)

    def topology() -> Topology:
        return Topology(
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

    batch_size = max(1, settings.plan.batch_size // cluster.num_ranks)
    plan = search_placement(model, tables_of_model(manifest, settings), lambda _: kinds, topology, batch_size)
    if plan is None:
        return None
    # A field has one placement, where each head has its own table of it: that of head 0.
    return {name: kind for name, kind in kinds_in(plan).items() if field_of(name) == name}


def settings_to_adopt(proposed: Mapping[str, str], tables: Sequence[TablePlan]) -> list[str]:
    """List the settings that make the trainer place every table as `proposed`, where its own `tables` differ."""
    planned = {table.field.name: table.kind for table in tables}
    return [f"sharding.tables.{name}={kind}" for name, kind in proposed.items() if kind != planned[name]]
