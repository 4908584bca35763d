"""Assess whether a training run fits a cluster: its tables, memory and steps, and what to change if it does not fit.

This is the work of jobs.plan; training.planning.feasibility_page formats it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError
from training.feed.plan import whole_samples
from training.feed.sampling import expected_by_counts
from training.model.own_tables import field_of
from training.planning.cluster import Cluster, cluster_of
from training.planning.memory_estimate import Needs, TablePlan, memory_needs, table_plans, tables_of_model
from training.planning.settings import FeasibilitySettings
from training.planning.torchrec_planner import propose, settings_to_adopt
from training.run.build import check_settings

#: Hosts that a remedy may ask for.
_MOST_HOSTS = 1024


@dataclass(frozen=True)
class Feasibility:
    """A run as it would be placed on a cluster."""

    settings: FeasibilitySettings  # its plan cut for the cluster's ranks
    changed: tuple[str, ...]  # what of the plan that took, as settings
    cluster: Cluster
    tables: tuple[TablePlan, ...]
    need: Needs
    usable_bytes: float  # of a rank
    units: int  # impressions (or clicks) of an epoch
    steps: int  # of an epoch
    proposed: Mapping[str, str] | None  # table → placement, by TorchRec's planner; None where it finds none
    remedy: str  # empty where it fits

    @property
    def fits(self) -> bool:
        """Whether every rank has the memory."""
        return max(self.need.ranks) <= self.usable_bytes


def assess(settings: FeasibilitySettings) -> Feasibility:
    """Assess the run on the cluster; InputError if it could not start for another reason than memory."""
    cluster = cluster_of(settings.cluster, settings.host_memory_gb, settings.network_gbit_per_s)
    manifest = with_rows(load_manifest(settings.data), settings.rows)
    manifest.files_of("train")
    graph = check_settings(settings, manifest, torch.device("cpu" if cluster.is_cpu else "cuda"))
    settings, changed = for_ranks(settings, cluster.num_ranks)
    tables = table_plans(tables_of_model(manifest, settings), settings, cluster.num_ranks)
    need = memory_needs(tables, manifest, settings, cluster.num_ranks, cluster.is_cpu)
    usable = cluster.memory_bytes * (1.0 - settings.keep_free)
    free = usable - need.towers - need.step
    copies = 1 + settings.average.is_on + (need.on_cpu and settings.checkpoint.asynchronous)
    free /= copies  # of the tables: their average and a checkpoint's copy, of which the planner knows nothing
    proposed = propose(settings, manifest, graph, cluster, free)
    units = units_of_an_epoch(settings, manifest)
    too_small = max(need.ranks) > usable
    return Feasibility(
        settings,
        changed,
        cluster,
        tuple(tables),
        need,
        usable,
        units,
        math.ceil(math.ceil(units / settings.plan.lanes) / (settings.plan.batch_size // settings.plan.lanes)),
        proposed,
        find_remedy(settings, manifest, cluster, tables, proposed, usable) if too_small else "",
    )


def with_rows(manifest: Manifest, rows: Mapping[str, int]) -> Manifest:
    """Return `manifest` with tables of other sizes; InputError for a field without a table."""
    names = [entry.name for entry in manifest.fields_of(stored=INDEX)]
    for name, number in rows.items():
        if name not in names:
            raise InputError(f"rows.{name}: the dataset has no table {name}; it has {', '.join(names)}.")
        if number < 1:
            raise InputError(f"rows.{name}={number} is below 1.")
    fields = tuple(replace(entry, num_rows=rows.get(entry.name, entry.num_rows)) for entry in manifest.fields)
    return replace(manifest, fields=fields)


def for_ranks(settings: FeasibilitySettings, num_ranks: int) -> tuple[FeasibilitySettings, tuple[str, ...]]:
    """Return `settings` with lanes and a batch that divide over `num_ranks` ranks, and the settings that this changed."""
    plan = settings.plan
    if plan.lanes % num_ranks == 0:
        return settings, ()
    lanes = -(-plan.lanes // num_ranks) * num_ranks
    batch_size = max(1, round(plan.batch_size / lanes)) * lanes
    changed = (f"plan.lanes={lanes}", f"plan.batch_size={batch_size}")
    return replace(settings, plan=replace(plan, lanes=lanes, batch_size=batch_size)), changed


def units_of_an_epoch(settings: FeasibilitySettings, manifest: Manifest) -> int:
    """Count impressions, or clicks or samples for a model that trains on these; of samples, none is rejected by pCTR."""
    total, model = manifest.totals["train"], settings.model
    if model.train_on == "samples":
        expected = expected_by_counts(model.sampling, total["impressions"], total["clicks"], total["conversions"])
        units = whole_samples(expected)
    else:
        units = total[model.train_on]
    if settings.impressions is None:
        return units
    return round(units * settings.impressions / total["impressions"])


def find_remedy(
    settings: FeasibilitySettings,
    manifest: Manifest,
    cluster: Cluster,
    tables: Sequence[TablePlan],
    proposed: Mapping[str, str] | None,
    usable: float,
) -> str:
    """Find the first of these that makes it fit: the largest tables cut by rows, the planner's placement, more hosts."""

    def fits(kinds: Mapping[str, str], num_ranks: int) -> bool:
        sharding = replace(settings.sharding, tables={**settings.sharding.tables, **kinds})
        other = replace(settings, sharding=sharding)
        found = table_plans(tables_of_model(manifest, other), other, num_ranks)
        return max(memory_needs(found, manifest, other, num_ranks, cluster.is_cpu).ranks) <= usable

    cut: dict[str, str] = {}
    for table in sorted(tables, key=lambda table: -table.weight_bytes):
        cut[field_of(table.field.name)] = "row_wise"
        if fits(cut, cluster.num_ranks):
            return " ".join(f"sharding.tables.{name}={kind}" for name, kind in cut.items())
    if proposed and fits(proposed, cluster.num_ranks):
        return " ".join(settings_to_adopt(proposed, tables))
    for hosts in range(cluster.hosts + 1, _MOST_HOSTS + 1):
        if fits(cut, hosts * cluster.per_host):
            bigger = replace(cluster, hosts=hosts)
            return f"cluster={bigger} with sharding.default=row_wise, or a smaller embedding.dim (now {settings.embedding.dim})."
    return "a smaller plan.batch_size, narrower towers, or devices with more memory: more of these do not help."
