"""Impressions a core-second of jobs.score, of a dataset and of raw lines, beside the trainer's forward pass; and memory.

    python -m benchmarks.score impressions=1000000
    python -m benchmarks.score impressions=10000000 work=DIR     # what is made is kept in DIR for the next time

A log of jobs.simulate, its dataset and a run of jobs.train (esmm, one epoch) are made first. The forward pass is that of
an evaluation: feed, lookups, towers and graph, without writing, on one thread. Both sides count CPU seconds of all their
processes. Spark's session is warm: a small split is scored first, and its workers keep the model. Every measurement is
taken three times in turn, and the median counts. Memory is the peak of all processes of the job, this driver included.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.preprocess import simulated_log
from benchmarks.processes import ProcessCost, process_cost
from jobs.entry import compose
from pipeline.config.score import ScoreSettings
from pipeline.dataset.manifest import load_manifest
from pipeline.passes.scorer import TrainedModel
from pipeline.score import score
from pipeline.spark.session import stop_spark
from training.distributed.rank_batches import rank_batches
from training.distributed.world import join
from training.feed.plan import Plan
from training.run.build import open_feed
from training.run.predict import restore_model
from training.run.run_folder import load_settings
from training.serving.row_scorer import describe_run

_ROUNDS = 3


def make_inputs(impressions: int, work: Path) -> tuple[Path, Path, Path]:
    """Return (raw log, dataset, run), made where they are not there."""
    raw = simulated_log(impressions, work, dirt=True)
    dataset, run = work / f"dataset-{impressions}", work / f"run-{impressions}"
    commands = [
        ["jobs.preprocess", f"source.path={raw}", f"out={dataset}"],
        ["jobs.train", f"data={dataset}", f"out={run}", "plan.batch_size=5000"],
    ]
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    return raw, dataset, run


def forward_s(run: Path, split: str) -> float:
    """Return the CPU seconds of this process for predicting a split, without writing it."""
    settings = load_settings(run)
    with join(settings.world) as world:
        restored = restore_model(run, settings, split, world, "newest", None)
        plan = Plan(restored.files, batch_size=settings.plan.batch_size, lanes=settings.plan.lanes, seed=None)
        feed = open_feed(replace(settings, data=restored.data), restored.manifest, split, plan, world)
        started = time.process_time()
        with torch.no_grad():
            for batch in rank_batches(feed, 0, range(plan.num_steps), restored.model.exchange, world.device):
                agreeing = batch.start_agreement(world)
                restored.graph.predict(restored.model.predict(batch.batch, batch.ids))
                batch.send_next()
                batch.agreed(agreeing, world)
        return time.process_time() - started


def score_cost(run: Path, work: Path, *words: str) -> tuple[int, ProcessCost]:
    """Score once; return the impressions and the cost."""
    out = work / "scores"
    shutil.rmtree(out, ignore_errors=True)
    found = describe_run(str(run), "newest")
    model = TrainedModel(found.scorer, found.outputs, found.dataset, found.manifest, found.origin)
    settings = compose("score", ScoreSettings, [f"run={run}", f"out={out}", *words])
    with process_cost() as cost:
        scores = score(settings, model)
    return sum(scores.totals.values()), cost


def main(impressions: int, work: Path) -> None:
    raw, dataset, run = make_inputs(impressions, work)
    num_test = load_manifest(dataset).totals["test"]["impressions"]
    small = score_cost(run, work, f"data={dataset}", "split=validation")
    forward, rows, lines, rows_mb, lines_mb = [], [], [], [0.0], [0.0]
    num_lines = 0
    for _ in range(_ROUNDS):
        forward.append(forward_s(run, "test") / num_test)
        number, cost = score_cost(run, work, f"data={dataset}", "split=test")
        rows.append(cost.total_s / number)
        rows_mb.append(cost.peak_mb)
        num_lines, cost = score_cost(run, work, f"source.path={raw}")
        lines.append(cost.total_s / num_lines)
        lines_mb.append(cost.peak_mb)
    base = statistics.median(forward)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, number, costs, peak in (
        ("forward pass of the trainer", num_test, forward, 0.0),
        ("jobs.score data=DATASET", num_test, rows, max(rows_mb)),
        ("jobs.score source.path=RAW", num_lines, lines, max(lines_mb)),
    ):
        median = statistics.median(costs)
        memory = f", peak {peak:,.0f} MB" if peak else ""
        print(
            f"{name:<28}{1 / median:>11,.0f} impressions a core-second ({number:,}; {1e6 * median:.2f} CPU-µs each), "
            f"{base / median:.2f} of the forward pass{memory}"
        )
    print(
        f"a small split first: {small[0]:,} impressions, peak {small[1].peak_mb:,.0f} MB, Spark's start and the model's loading included"
    )
    stop_spark()


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if "work" in given:
        Path(given["work"]).mkdir(parents=True, exist_ok=True)
        main(int(given.get("impressions", "1000000")), Path(given["work"]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(int(given.get("impressions", "1000000")), Path(folder))
