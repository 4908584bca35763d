"""Kill a training run in every way that a cluster does, and check what becomes of it.

    python -m benchmarks.faults --data DATASET [--kills 20] [--seed 1]

A shuffled run under the real torchrun is killed at random steps (SIGKILL of a rank, of torchrun and all its ranks,
SIGTERM to torchrun), started again with the same command until it is done, and compared with an undisturbed one: the
checksums of the final checkpoint, the predictions, and the impressions of every step. Then the number of ranks changes
on the way. Last come faults that a run cannot survive: each must end it with one error message
(`benchmarks.reported_faults`).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reported_faults import FAULTS
from benchmarks.torchrun_runs import Ended, Run, kill_all, ranks_of
from pipeline.dataset.manifest import load_manifest
from training.feed.plan import Plan
from training.run.interrupts import REQUEUE

EPOCHS, EVERY_STEPS, TIMEOUT_S, LANES = 3, 10, 30, 8
COMPARED_STEPS = 10
KILLS = ("SIGKILL rank 0", "SIGTERM torchrun", "SIGKILL rank 1", "SIGKILL torchrun and all ranks")


@dataclass
class Bench:
    """The dataset, the folder that the runs go to, and the size of a step."""

    data: Path
    work: Path
    batch_size: int

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        files = load_manifest(str(self.data)).files_of("train")
        return Plan(files, batch_size=self.batch_size, lanes=LANES, seed=None).num_steps

    def run(self, name: str, *overrides: str, data: Path | None = None) -> Run:
        """Make a run that is not started yet."""
        settings = [f"epochs={EPOCHS}", f"plan.batch_size={self.batch_size}", f"plan.lanes={LANES}"]
        settings += ["model.towers.hidden=[64,32]", "model.towers.dropout=0.2", "log.every_steps=1"]
        settings += [f"checkpoint.every_steps={EVERY_STEPS}", f"world.timeout_s={TIMEOUT_S}"]
        return Run(self.work / name, data or self.data, [*settings, *overrides])


def main() -> None:
    """Run all of it; exit with status 1 if anything does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        bench = Bench(options.data.resolve(), Path(work), options.batch_size)
        print(f"{EPOCHS} epochs of {bench.num_steps} steps, a checkpoint every {EVERY_STEPS}, 2 ranks", flush=True)
        whole = bench.run("undisturbed")
        done = whole.finish(whole.start(2))
        assert done.status == 0, done.stderr
        all_hold = check_kills(bench, whole, options.kills, options.seed)
        all_hold = check_resizes(bench, whole) and all_hold
        print("\n| fault | message after | message | last whole checkpoint |  |\n|---|---|---|---|---|", flush=True)
        for name, fault in FAULTS.items():
            found = fault(bench.run, EPOCHS * bench.num_steps // 2, bench.data)
            shown = " ".join(found.message.split()).replace(str(bench.work), "…")
            print(
                f"| {name} | {found.message_s:.0f} s | {shown} | {found.checkpoint} | {verdict(found.holds)} |",
                flush=True,
            )
            all_hold = all_hold and found.holds
    sys.exit(0 if all_hold else 1)


def verdict(holds: bool) -> str:
    """Return the words of a table."""
    return "holds" if holds else "DOES NOT HOLD"


def check_kills(bench: Bench, whole: Run, kills: int, seed: int) -> bool:
    """Check that a run killed `kills` times ends with the same bits as the `whole` one."""
    run = bench.run("killed")
    targets = sorted(random.Random(seed).sample(range(1, EPOCHS * bench.num_steps), kills))
    print("\n| kill | at step | torchrun's status | REQUEUE | resumes at step |\n|---|---|---|---|---|", flush=True)
    for number, target in enumerate(targets):
        kind = KILLS[number % len(KILLS)]
        ended = kill_at(run, target, kind)
        asked = "yes" if (run.out / REQUEUE).exists() else "no"
        print(f"| {kind} | {target} | {ended.status} | {asked} | {run.last_step()} |", flush=True)
    done = run.finish(run.start(2))
    assert done.status == 0, done.stderr
    batches = run.batches()
    return table(
        f"{kills} kills, {len(run.started)} starts, beside the undisturbed run",
        {
            "weights and optimizer states: the xxh3 of all files": run.files() == whole.files(),
            "predictions of the test split": predictions(run).equals(predictions(whole)),
            "impressions of each step": batches == whole.batches(),
            "each impression once in every epoch": once_per_epoch(batches, bench),
        },
    )


def table(title: str, checks: dict[str, bool]) -> bool:
    """Print what holds, and return whether all does."""
    print(f"\n| {title} | |\n|---|---|")
    for name, holds in checks.items():
        print(f"| {name} | {verdict(holds)} |", flush=True)
    return all(checks.values())


def kill_at(run: Run, step: int, kind: str) -> Ended:
    """Start `run` and kill it when it takes `step`."""
    process = run.start(2)
    assert run.reach(step, process), run.stderr.read_text()
    if kind == "SIGTERM torchrun":
        process.terminate()
    elif kind == "SIGKILL torchrun and all ranks":
        kill_all(process)
    else:
        os.kill(ranks_of(process)[int(kind[-1])], signal.SIGKILL)
    return run.finish(process)


def predictions(run: Run) -> pa.Table:
    """Predict the test split by jobs.evaluate."""
    command = [sys.executable, "-m", "jobs.evaluate", f"run={run.out}", "split=test"]
    subprocess.run(command, check=True, capture_output=True)
    return pq.read_table(run.out / "predictions" / "test")


def once_per_epoch(batches: list[list[int]], bench: Bench) -> bool:
    """Check that the steps of every epoch hold the impressions of the training split, each once."""
    wanted: list[int] = []
    for file in load_manifest(str(bench.data)).files_of("train"):
        column = pq.read_table(bench.data / file.path, columns=["impression_id"]).column(0)
        wanted += pa.concat_arrays([chunk.flatten() for chunk in column.chunks]).to_pylist()
    epochs = [batches[start : start + bench.num_steps] for start in range(0, len(batches), bench.num_steps)]
    fed = [sorted(number for step in epoch for number in step) for epoch in epochs]
    return fed == [sorted(wanted)] * EPOCHS


def check_resizes(bench: Bench, whole: Run) -> bool:
    """Check 2 → 1 → 4 → 2 ranks: the same global batches, and the same losses while the runs differ by rounding alone.

    Sums over another number of ranks round differently, by 1e-8 of a loss. The optimizers divide by the size of a
    gradient, so they turn rounding into steps: two runs diverge after some 70 steps, or never. So the steps right after
    the first change are compared: a lost piece of state shows there. The last validation is only printed.
    """
    run, total = bench.run("resized"), EPOCHS * bench.num_steps
    changed_at = 0
    for ranks, share in ((2, 0.2), (1, 0.45), (4, 0.7), (2, None)):
        process = run.start(ranks)
        if share is not None:
            assert run.reach(round(share * total), process), run.stderr.read_text()
            process.terminate()
        run.finish(process)
        changed_at = changed_at or run.last_step()
    assert run.started[-1].status == 0, run.started[-1].stderr
    found, expected = losses(run.out, "loss"), losses(whole.out, "loss")
    after = range(changed_at + 1, changed_at + 1 + COMPARED_STEPS)
    most = max(abs(found[step] - expected[step]) for step in after)
    all_hold = table(
        "2 → 1 → 4 → 2 ranks, beside 2",
        {
            "impressions of each step": run.batches() == whole.batches(),
            f"losses of the {COMPARED_STEPS} steps after the first change, to 1e-6 ({most:.0e})": most < 1e-6,
        },
    )
    ends = " and ".join(f"{losses(out, 'validation_loss')[total]:.6f}" for out in (run.out, whole.out))
    print(f"\nvalidation loss at the end: {ends}", flush=True)
    return all_hold


def losses(out: Path, name: str) -> dict[int, float]:
    """Read the figure `name` of each step in the journal."""
    entries = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {entry["step"]: entry[name] for entry in entries if name in entry}


if __name__ == "__main__":
    main()
