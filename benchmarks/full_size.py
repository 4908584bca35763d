"""The whole road at Ali-CCP's size: wall and CPU seconds and peak memory of each stage, and the AUCs beside the attainable.

    python -m benchmarks.full_size out=DIR                        # 85.3M impressions at published rates: 38 GB of text
    python -m benchmarks.full_size out=DIR impressions=1000000    # the same, smaller
    python -m benchmarks.full_size out=DIR ranks=1 batch_size=20000

It runs the commands that a user would type, one after another: simulate, preprocess, train, evaluate. Each stage's figures
are kept in DIR/full_size.json when it ends. A stopped run resumes: a finished stage is not run again, and a stage that was
stopped counts from its last start, which the table says. The memory is the largest sum over all processes of a stage, by
proportional set size, read four times a second.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command_cost import cost_of
from benchmarks.processes import process_cost
from benchmarks.train import processor
from pipeline.atomic_files import write_whole

ALICCP_IMPRESSIONS = 85_316_519  # both splits
FIGURES = "full_size.json"
AUCS = ("ctr_auc", "cvr_auc", "ctcvr_auc")
#: What a stage leaves when it is complete, below DIR.
LEAVES = {
    "simulate": "raw/simulation.json",
    "preprocess": "dataset/manifest.json",
    "train": "run/checkpoints",
    "evaluate": "run/metrics.json",
}


@dataclass(frozen=True)
class StageFigures:
    """What one stage took."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    is_resumed: bool  # an earlier start of it had done a part


def stage_commands(out: Path, impressions: int, ranks: int, batch_size: int) -> dict[str, list[str]]:
    """Return the command of each stage, in order."""
    raw, dataset, run = out / "raw", out / "dataset", out / "run"
    commands = {
        "simulate": ["jobs.simulate", f"out={raw}", f"impressions={impressions}", "seed=2018"],
        "preprocess": ["jobs.preprocess", "source=aliccp", f"source.path={raw}", f"out={dataset}", "split.validation=0"],
        "train": ["jobs.train", f"ranks={ranks}", f"data={dataset}", "model=esmm", f"plan.batch_size={batch_size}", f"out={run}"],
        "evaluate": ["jobs.evaluate", f"ranks={ranks}", f"run={run}", "split=test", f"truth={raw / 'truth_test.parquet'}"],
    }  # fmt: skip
    return {stage: [sys.executable, "-m", *words] for stage, words in commands.items()}


def run_stage(stage: str, command: list[str], out: Path) -> StageFigures:
    """Run one stage and measure it. Stops this program if it fails."""
    print(f"── {stage} ──\n$ {shlex.join(command)}", flush=True)
    is_resumed = (out / LEAVES[stage]).exists()
    with process_cost(only_new=True) as memory:
        cost = cost_of(command, Path.cwd(), {}, shows=True)
    return StageFigures(cost.wall_s, cost.cpu_s, memory.peak_mb, is_resumed)


def read_figures(path: Path, commands: dict[str, list[str]]) -> dict[str, StageFigures]:
    """Read the figures of finished stages. Stops this program if they are of other commands."""
    if not path.exists():
        return {}
    saved = json.loads(path.read_text())
    found = {}
    for stage, entry in saved.items():
        if entry["command"] != commands[stage][1:]:
            raise SystemExit(
                f"{path} has figures of another command of {stage}; give the same settings, or another out=."
            )
        found[stage] = StageFigures(**entry["figures"])
    return found


def table_of(figures: dict[str, StageFigures], impressions: int) -> str:
    """Format the figures, a line a stage, and their sum without simulate."""
    lines = [f"{'stage':<12}{'wall s':>9}{'CPU s':>9}{'CPU-µs an impression':>22}{'peak MB':>9}"]
    measured = [one for stage, one in figures.items() if stage != "simulate"]
    total = StageFigures(
        sum(one.wall_s for one in measured),
        sum(one.cpu_s for one in measured),
        max(one.peak_mb for one in measured),
        is_resumed=any(one.is_resumed for one in measured),
    )
    for stage, one in [*figures.items(), ("raw → AUC", total)]:
        note = "  (resumed: only its last start)" if one.is_resumed else ""
        per_impression = one.cpu_s / impressions * 1e6
        lines.append(f"{stage:<12}{one.wall_s:>9.1f}{one.cpu_s:>9.1f}{per_impression:>22.2f}{one.peak_mb:>9.0f}{note}")
    return "\n".join(lines)


def quality_of(metrics: dict[str, Any]) -> str:
    """Format each AUC beside the attainable one, the AUC of the true probabilities, and the share of its way from 0.5."""
    lines = []
    for name in AUCS:
        found, attainable, share = metrics[name], metrics[f"true_{name}"], metrics[f"{name}_share"]
        if share is None:
            lines.append(f"{name:<10} or its attainable value is undefined")
        else:
            lines.append(f"{name:<10} {found:.4f} of {attainable:.4f} attainable: {share:.0%} of the way from 0.5")
    return "\n".join(lines)


def main() -> None:
    options = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if "out" not in options or set(options) - {"out", "impressions", "ranks", "batch_size"}:
        raise SystemExit("usage: python -m benchmarks.full_size out=DIR [impressions=N] [ranks=2] [batch_size=5000]")
    out, impressions = Path(options["out"]), int(options.get("impressions", ALICCP_IMPRESSIONS))
    commands = stage_commands(out, impressions, int(options.get("ranks", 2)), int(options.get("batch_size", 5000)))
    out.mkdir(parents=True, exist_ok=True)
    figures = read_figures(out / FIGURES, commands)
    for stage, command in commands.items():
        if stage not in figures:
            figures[stage] = run_stage(stage, command, out)
            saved = {name: {"command": commands[name][1:], "figures": asdict(one)} for name, one in figures.items()}
            write_whole(out / FIGURES, json.dumps(saved, indent=1) + "\n")
    print(f"\n{processor()}; {impressions:,} impressions, ", end="")
    text_gb = sum(path.stat().st_size for path in (out / "raw").glob("*.csv")) / 1e9
    print(f"{text_gb:.1f} GB of text\n\n{table_of(figures, impressions)}\n")
    print(quality_of(json.loads((out / "run" / "metrics.json").read_text())))


if __name__ == "__main__":
    main()
