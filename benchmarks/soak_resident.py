"""The process of benchmarks.soak that lives on: for each line of its input it does all the work of a round in itself.

    python -m benchmarks.soak_resident RAW FOLDER

It preprocesses in one Spark session, trains, evaluates and opens a scorer, removes what it made, and prints its open files, threads
and memory as JSON.
"""

import contextlib
import gc
import json
import os
import shutil
import sys
from pathlib import Path

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.preprocess import preprocess
from training.distributed.world import join
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer
from training.serving.open_run import open_scorer


def work(raw: Path, folder: Path) -> None:
    """Do a round, and leave nothing."""
    dataset, run = folder / "dataset", folder / "run"
    preprocess(
        compose("preprocess", PreprocessSettings, [f"source.path={raw}", f"out={dataset}", "source.split_bytes=500000"])
    )
    words = [
        f"data={dataset}",
        f"out={run}",
        "plan.batch_size=100",
        "plan.lanes=2",
        "model.towers.hidden=[16]",
        "checkpoint.every_steps=5",
    ]
    settings = compose("train", TrainSettings, [*words, "model=esmm", "world.device=cpu"])
    with join(settings.world) as world:
        assert Trainer(settings, world).fit() == 0
    with join(settings.world) as world:
        evaluate_split(run, settings, "test", None, world)
    assert open_scorer(run).predict({}, [{}, {}])
    shutil.rmtree(folder)


def measured() -> dict[str, float]:
    """Return this process's open files, threads and memory, what is free having been given back."""
    gc.collect()
    resident_kb = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return {
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "memory_mb": int(resident_kb.split()[1]) // 1024,
    }


def main() -> None:
    raw, folder = map(Path, sys.argv[1:])
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            work(raw, folder)
        print(json.dumps(measured()), flush=True)


if __name__ == "__main__":
    main()
