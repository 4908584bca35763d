"""The demo: every job as a subprocess, by the command that a user would type, then a table of what came of it."""

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset.manifest import SPLITS, load_manifest
from pipeline.errors import InputError
from pipeline.locations import refuse_address
from pipeline.terminal import close_job
from training.model.settings import ModelSettings
from training.run.stages import print_heading, run_command


@dataclass
class DemoSettings:
    """conf/demo.yaml."""

    out: str = "demo"  # folder of the log, the dataset and the run
    impressions: int = 1_000_000  # of the simulated log
    seed: int = 1  # of the simulated log
    ranks: int = 2  # of the training
    model: str = "esmm"  # a file of conf/model
    batch_size: int = 1000  # the paper's 5000 would leave half a million impressions 90 updates, too few to learn from

    def __post_init__(self) -> None:
        refuse_address("out", self.out)
        for name, least in {"impressions": 1, "seed": 0, "ranks": 1, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} is below {least}.")


def demo_commands(settings: DemoSettings, model: ModelSettings) -> list[tuple[str, list[str]]]:
    """List the stages in order, each with its command, which does nothing if its work is done."""
    with_daction = needs_daction(model)
    actions, labels = (["actions=true"], ["labels=cart_wish"]) if with_daction else ([], [])
    out = Path(settings.out)
    raw, dataset, run = out / "raw", out / "dataset", out / "run"
    python = [sys.executable, "-m"]
    return [
        ("simulate", [*python, "jobs.simulate", f"out={raw}", f"impressions={settings.impressions}", f"seed={settings.seed}", "rates=demo", *actions]),
        ("preprocess", [*python, "jobs.preprocess", "source=aliccp", f"source.path={raw}", *labels, f"out={dataset}"]),
        ("train", [*python, "jobs.train", f"ranks={settings.ranks}", f"data={dataset}", f"model={settings.model}", f"plan.batch_size={settings.batch_size}", f"out={run}"]),
        ("evaluate", [*python, "jobs.evaluate", f"run={run}", "split=test", f"truth={raw / 'truth_test.parquet'}"]),
    ]  # fmt: skip


def needs_daction(model: ModelSettings) -> bool:
    """Tell whether a model learns or predicts the label daction, which a dataset has with labels=cart_wish alone."""
    nodes = {name for edge in model.graph.edges for name in re.findall(r"\w+", edge)}
    return "daction" in {model.graph.labels.get(node, node) for node in nodes}


def run_demo(settings: DemoSettings, model: ModelSettings) -> None:
    """Run the stages, then print `demo_table`; InputError if a stage fails."""
    begin = time.monotonic()
    for name, command in demo_commands(settings, model):
        if name == "evaluate" and is_evaluated(Path(settings.out) / "run"):
            print_heading(name, command)
            print("The newest checkpoint is evaluated already; nothing to do.", flush=True)
            continue
        run_command(name, command)
    out = Path(settings.out)
    print(f"\n{demo_table(out)}\n")
    pages = [str((out / page).resolve()) for page in ("dataset/audit.html", "run/report.html")]
    close_job("demo", str(out), time.monotonic() - begin, pages=pages)


def is_evaluated(run: Path) -> bool:
    """Check that the report, which an evaluation writes last, is newer than every checkpoint."""
    report, checkpoints = run / "report.html", run.glob("checkpoints/*/checkpoint.json")
    return report.exists() and report.stat().st_mtime > max(path.stat().st_mtime for path in checkpoints)


def demo_table(out: Path) -> str:
    """Format impressions, contexts and quarantined lines of the dataset, and the AUCs beside those of the oracle."""
    manifest = load_manifest(out / "dataset")
    metrics = json.loads((out / "run" / "metrics.json").read_text())
    contexts = sum(lines["contexts"]["written"] for lines in manifest.audit["lines"].values())
    impressions = {split: totals["impressions"] for split, totals in manifest.totals.items()}
    per_split = " · ".join(f"{impressions[split]:,} {split}" for split in SPLITS if split in impressions)
    rejected = {reason: count for reason, count in manifest.audit["quarantined"].items() if count}
    lines = [
        f"{'impressions':<12}{sum(impressions.values()):>11,}   {per_split}",
        f"{'contexts':<12}{contexts:>11,}",
        f"{'quarantined':<12}{sum(rejected.values()):>11,}   "
        + " · ".join(f"{count} {reason}" for reason, count in rejected.items()),
        "",
        f"{'AUC on test':<12}{'model':>11}{'oracle':>9}   share of the attainable AUC",
    ]
    for task in ("ctr", "cvr", "ctcvr"):
        if f"{task}_auc" in metrics:
            model, oracle, share = (metrics[key] for key in (f"{task}_auc", f"true_{task}_auc", f"{task}_auc_share"))
            lines.append(f"{task.upper():<12}{model:>11.4f}{oracle:>9.4f}   {share:.0%}")
    return "\n".join(lines)
