"""Format what jobs.plan prints: tables, the memory of a rank, steps, TorchRec's opinion, and the command or the remedy."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields

from pipeline.terminal import size_text
from training.planning.cluster import Cluster
from training.planning.feasibility import Feasibility
from training.planning.memory_estimate import Needs, TablePlan
from training.planning.settings import FeasibilitySettings
from training.planning.torchrec_planner import settings_to_adopt
from training.run.settings import TrainSettings

#: Settings that a launch does not repeat as they were given: those of the planning alone, and those it states itself.
_NOT_REPEATED = {entry.name for entry in fields(FeasibilitySettings)} - {entry.name for entry in fields(TrainSettings)}
_NOT_REPEATED |= {"data", "model", "out", "ranks"}


def feasibility_lines(feasibility: Feasibility, given: Sequence[str] = ()) -> list[str]:
    """Write the lines that jobs.plan prints; `given` are the settings on the command line, which the launch must repeat."""
    cluster, settings = feasibility.cluster, feasibility.settings
    lines = [
        f"{cluster}: {cluster.num_ranks} ranks with {cluster.memory_bytes / 1e9:.3g} GB each, of which "
        f"{settings.keep_free:.0%} stay free",
        "",
        *table_lines(feasibility.tables),
        "",
        *memory_lines(feasibility.need, feasibility.usable_bytes),
        "",
        f"{feasibility.steps:,} steps an epoch of {feasibility.units:,} {settings.model.train_on} at "
        f"plan.batch_size={settings.plan.batch_size}, {settings.plan.batch_size / cluster.num_ranks:,.0f} on each rank",
        *proposal_lines(feasibility.proposed, feasibility.tables, cluster),
        "",
    ]
    if feasibility.fits:
        return [*lines, "It fits. Launch it on every host with:", f"  {launch_command(feasibility, given)}"]
    ranks = feasibility.need.ranks
    worst = max(range(cluster.num_ranks), key=ranks.__getitem__)
    return [
        *lines,
        f"It does not fit: rank {worst} needs {size_text(ranks[worst])} and has {size_text(feasibility.usable_bytes)}.",
        f"Remedy: {feasibility.remedy}",
    ]


def table_lines(tables: Sequence[TablePlan]) -> list[str]:
    """Write one line a table, the largest first."""
    lines = [f"{'table':<24}{'rows':>14}{'columns':>9}{'weights':>11}{'optimizer':>11}  placed"]
    for table in sorted(tables, key=lambda table: (-table.weight_bytes, table.field.name)):
        ranks = table.ranks
        where = f"on rank {ranks[0]}" if len(ranks) == 1 else f"on {len(ranks)} ranks"
        lines.append(
            f"{table.field.name:<24}{table.field.num_rows:>14,}{table.columns:>9}{size_text(table.weight_bytes):>11}"
            f"{size_text(table.state_bytes):>11}  {table.kind}, {where}"
        )
    return lines


def memory_lines(need: Needs, usable: float) -> list[str]:
    """List the parts of a rank's memory, where it is least and where most."""
    parts = [
        ("tables, their optimizer", min(need.tables), max(need.tables)),
        ("towers, gradients, Adam", need.towers, need.towers),
        ("average of the weights", min(need.average), max(need.average)),
        ("a step (an estimate)", need.step, need.step),
    ]
    copy = ("a checkpoint's copy", min(need.checkpoint), max(need.checkpoint))
    parts += [copy] if need.on_cpu else []
    parts.append(("all", min(need.ranks), max(need.ranks)))
    lines = [
        f"{'memory of a rank':<24}{'least':>11}{'most':>11}",
        *(f"{name:<24}{size_text(least):>11}{size_text(most):>11}" for name, least, most in parts),
        f"{'it has':<24}{'':>11}{size_text(usable):>11}",
    ]
    if not need.on_cpu:
        lines.append(f"On the host besides, for each rank: {copy[0]}, {size_text(copy[1])} to {size_text(copy[2])}.")
    return lines


def proposal_lines(proposed: Mapping[str, str] | None, tables: Sequence[TablePlan], cluster: Cluster) -> list[str]:
    """Compare the placement with the one that TorchRec's planner proposes."""
    if proposed is None:
        return ["TorchRec's planner finds no placement that fits."]
    adopt = settings_to_adopt(proposed, tables)
    if not adopt:
        return ["TorchRec's planner would place every table in the same way (the ranks may be others)."]
    limit = " (it knows no row_wise on CPU)" if cluster.is_cpu else ""
    return [
        f"TorchRec's planner{limit} would place {len(adopt)} tables in another way; to adopt that:",
        "  " + " ".join(adopt),
    ]


def launch_command(feasibility: Feasibility, given: Sequence[str]) -> str:
    """Write the command that launches the run, on every host."""
    cluster, settings = feasibility.cluster, feasibility.settings
    chosen = [text for text in given if text.startswith("model=")] or [f"model={settings.model.name}"]
    words = [f"data={settings.data}", *chosen, *arguments_to_repeat(given, feasibility.changed)]
    arguments = shlex.join([*words, "out=RUN"])
    if cluster.hosts == 1:
        ranks = f"ranks={cluster.per_host} " if cluster.per_host > 1 else ""
        return f"python -m jobs.train {ranks}{arguments}"
    nodes = f"--nnodes {cluster.hosts} --node-rank K --rdzv-backend static --rdzv-endpoint HOST:PORT"
    return f"torchrun {nodes} --nproc-per-node {cluster.per_host} -m jobs.train {arguments}"


def arguments_to_repeat(given: Sequence[str], changed: Sequence[str]) -> list[str]:
    """Return the arguments of `given` that jobs.train takes too, with `changed` in place of those that it replaces."""
    keys = {text.partition("=")[0] for text in changed}
    plain = [text.lstrip("+") for text in given]
    kept = [text for text in plain if text.partition("=")[0] not in keys]
    return [*(text for text in kept if text.partition("=")[0].partition(".")[0] not in _NOT_REPEATED), *changed]
