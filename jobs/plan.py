"""python -m jobs.plan data=DATASET cluster=8x8xH100 [rows.user_id=48000000 …]: does a training run fit, and how is it spread?

Takes every setting of jobs.train and looks at them as jobs.train would. Exits with status 2 where a rank's memory is too
small. Nothing is trained and no GPU is needed.
"""

import math
import sys
from dataclasses import dataclass, field, replace

import torch
from omegaconf import MISSING

from jobs.entry import EXIT_INPUT, launch
from pipeline.manifest import CATEGORICAL, InputError, Manifest, load_manifest
from training.assembly import check
from training.capacity import Needs, TablePlan, needs, table_plans
from training.cluster import Cluster, cluster_of
from training.proposal import adopting, propose
from training.settings import TrainSettings


@dataclass
class PlanJobSettings(TrainSettings):
    """conf/plan.yaml."""

    cluster: str = MISSING
    rows: dict[str, int] = field(default_factory=dict)
    impressions: int | None = None
    keep_free: float = 0.1
    host_memory_gb: float = 512.0
    network_gbit_per_s: float = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.keep_free < 1.0:
            raise InputError(f"keep_free={self.keep_free} is outside [0, 1).")
        if self.impressions is not None and self.impressions < 1:
            raise InputError(f"impressions={self.impressions} is below 1.")


def run(settings: PlanJobSettings) -> None:
    """Print the plan."""
    lines, fits = planned(settings)
    print("\n".join(lines))
    if not fits:
        sys.exit(EXIT_INPUT)


def planned(settings: PlanJobSettings) -> tuple[list[str], bool]:
    """What is printed, and whether the run fits."""
    cluster = cluster_of(settings.cluster, settings.host_memory_gb, settings.network_gbit_per_s)
    manifest = with_rows(load_manifest(settings.data), settings.rows)
    manifest.files_of("train")
    graph = check(settings, manifest, torch.device("cpu" if cluster.is_cpu else "cuda"))
    launching = fitting_lanes(settings, cluster.num_ranks)
    fields, usable = manifest.fields_of(kind=CATEGORICAL), cluster.memory_bytes * (1.0 - settings.keep_free)
    tables = table_plans(fields, settings, cluster.num_ranks)
    need = needs(tables, manifest, settings, cluster.num_ranks)
    proposed = propose(settings, manifest, graph, cluster, usable - need.towers - need.step)
    lines = [
        f"{cluster}: {cluster.num_ranks} ranks with {cluster.memory_bytes / 1e9:.0f} GB each, of which "
        f"{settings.keep_free:.0%} stay free",
        "",
        *table_lines(tables),
        "",
        *memory_lines(need, usable),
        "",
        step_line(settings, manifest, cluster.num_ranks),
        *proposal_lines(proposed, tables, cluster),
        "",
    ]
    fits = max(need.ranks) <= usable
    if fits:
        launching += [f"sharding.tables.{name}={kind}" for name, kind in settings.sharding.tables.items()]
        return [*lines, "It fits. Launch it on every host with:", *launch_lines(settings, cluster, launching)], True
    worst = max(range(cluster.num_ranks), key=need.ranks.__getitem__)
    lines.append(f"It does not fit: rank {worst} needs {gb(need.ranks[worst])} and has {gb(usable)}.")
    return [*lines, remedy(settings, manifest, cluster, tables, proposed, usable)], False


def with_rows(manifest: Manifest, rows: dict[str, int]) -> Manifest:
    """`manifest` with tables of other sizes; InputError for a field without a table."""
    names = [entry.name for entry in manifest.fields_of(kind=CATEGORICAL)]
    for name, number in rows.items():
        if name not in names:
            raise InputError(f"rows.{name}: the dataset has no table {name}; it has {', '.join(names)}.")
        if number < 1:
            raise InputError(f"rows.{name}={number} is below 1.")
    fields = tuple(replace(entry, num_rows=rows.get(entry.name, entry.num_rows)) for entry in manifest.fields)
    return replace(manifest, fields=fields)


def fitting_lanes(settings: TrainSettings, num_ranks: int) -> list[str]:
    """Settings of the plan that `num_ranks` ranks can share, which are put into `settings`; those that changed."""
    plan = settings.plan
    if plan.lanes % num_ranks == 0:
        return []
    lanes = -(-plan.lanes // num_ranks) * num_ranks
    batch_size = max(1, round(plan.batch_size / lanes)) * lanes
    settings.plan = replace(plan, lanes=lanes, batch_size=batch_size)
    return [f"plan.lanes={lanes}", f"plan.batch_size={batch_size}"]


def table_lines(tables: list[TablePlan]) -> list[str]:
    """One line a table, the largest first."""
    lines = [f"{'table':<24}{'rows':>14}{'columns':>9}{'weights':>11}{'optimizer':>11}  placed"]
    for table in sorted(tables, key=lambda table: (-table.weight_bytes, table.field.name)):
        ranks = table.ranks
        where = f"on rank {ranks[0]}" if len(ranks) == 1 else f"on {len(ranks)} ranks"
        lines.append(
            f"{table.field.name:<24}{table.field.num_rows:>14,}{table.columns:>9}{gb(table.weight_bytes):>11}"
            f"{gb(table.state_bytes):>11}  {table.kind}, {where}"
        )
    return lines


def memory_lines(need: Needs, usable: float) -> list[str]:
    """The parts of a rank's memory, where it is least and where most."""
    parts = [
        ("tables, their optimizer", min(need.tables), max(need.tables)),
        ("towers, gradients, Adam", need.towers, need.towers),
        ("a step (an estimate)", need.step, need.step),
        ("all", min(need.ranks), max(need.ranks)),
    ]
    head = f"{'memory of a rank':<24}{'least':>11}{'most':>11}"
    return [
        head,
        *(f"{name:<24}{gb(least):>11}{gb(most):>11}" for name, least, most in parts),
        f"{'it has':<24}{'':>11}{gb(usable):>11}",
    ]


def step_line(settings: PlanJobSettings, manifest: Manifest, num_ranks: int) -> str:
    """Steps an epoch, as training.plan counts them."""
    unit, plan, total = settings.model.train_on, settings.plan, manifest.totals["train"]
    units = total[unit]
    if settings.impressions is not None:
        units = round(units * settings.impressions / total["impressions"])
    longest_lane = math.ceil(units / plan.lanes)
    steps = math.ceil(longest_lane / (plan.batch_size // plan.lanes))
    return (
        f"{steps:,} steps an epoch of {units:,} {unit} at plan.batch_size={plan.batch_size}, "
        f"{plan.batch_size / num_ranks:,.0f} on each rank"
    )


def proposal_lines(proposed: dict[str, str] | None, tables: list[TablePlan], cluster: Cluster) -> list[str]:
    """What TorchRec's planner says to the placement."""
    if proposed is None:
        return ["TorchRec's planner finds no placement that fits."]
    adopt = adopting(proposed, tables)
    if not adopt:
        return ["TorchRec's planner would place every table in the same way (the ranks may be others)."]
    limit = " (it knows no row_wise on CPU)" if cluster.is_cpu else ""
    return [
        f"TorchRec's planner{limit} would place {len(adopt)} tables in another way; to adopt that:",
        "  " + " ".join(adopt),
    ]


def remedy(
    settings: PlanJobSettings,
    manifest: Manifest,
    cluster: Cluster,
    tables: list[TablePlan],
    proposed: dict[str, str] | None,
    usable: float,
) -> str:
    """The first of these that makes it fit: the largest tables cut by rows, the planner's placement, more hosts."""

    def fits(kinds: dict[str, str], num_ranks: int) -> bool:
        sharding = replace(settings.sharding, tables={**settings.sharding.tables, **kinds})
        other = replace(settings, sharding=sharding)
        found = table_plans(manifest.fields_of(kind=CATEGORICAL), other, num_ranks)
        return max(needs(found, manifest, other, num_ranks).ranks) <= usable

    cut: dict[str, str] = {}
    for table in sorted(tables, key=lambda table: -table.weight_bytes):
        cut[table.field.name] = "row_wise"
        if fits(cut, cluster.num_ranks):
            return "Remedy: " + " ".join(f"sharding.tables.{name}={kind}" for name, kind in cut.items())
    if proposed and fits(proposed, cluster.num_ranks):
        return "Remedy: " + " ".join(adopting(proposed, tables))
    for hosts in range(cluster.hosts + 1, 1025):
        if fits(cut, hosts * cluster.per_host):
            bigger = replace(cluster, hosts=hosts)
            return f"Remedy: cluster={bigger} with sharding.default=row_wise, or a smaller embedding.dim (now {settings.embedding.dim})."
    return "Remedy: a smaller plan.batch_size, narrower towers, or devices with more memory: more of these do not help."


def launch_lines(settings: PlanJobSettings, cluster: Cluster, changed: list[str]) -> list[str]:
    """The command, for every host."""
    nodes = f"--nnodes {cluster.hosts} --rdzv-backend c10d --rdzv-endpoint HOST:PORT " if cluster.hosts > 1 else ""
    words = [f"data={settings.data}", f"model={settings.model.name}", *changed, "out=RUN"]
    return [f"  torchrun {nodes}--nproc-per-node {cluster.per_host} -m jobs.train {' '.join(words)}"]


def gb(number: float) -> str:
    """Bytes, in the unit that suits them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"


if __name__ == "__main__":
    launch("plan", PlanJobSettings, run)
