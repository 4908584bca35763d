"""The cost of a checkpoint to the steps of training: written in the background, or waited for.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint --data DATASET

One rank, ESMM as configured, one epoch with a checkpoint every few steps, both ways alternating. The pause is what a
save adds between two steps; "step meanwhile" are the steps taken while a thread was writing.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from jobs.entry import compose
from training.checkpoint.files import find_newest
from training.distributed.world import join
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def measure(settings: TrainSettings, every_steps: int) -> tuple[dict[str, list[float]], int]:
    """Train an epoch; return the seconds of each kind of step, and the bytes of a checkpoint."""
    seconds: dict[str, list[float]] = {"step alone": [], "step meanwhile": [], "pause": []}
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        if trainer.plan.num_steps < 2 * every_steps:
            raise SystemExit(
                f"{settings.data} has {trainer.plan.num_steps} steps: too few for --every-steps {every_steps}"
            )
        writer = trainer._writer
        with writer:
            for rank_batch in trainer.batches():
                began_s, kind = time.monotonic(), "step meanwhile" if writer.is_underway else "step alone"
                agreed = trainer.step(rank_batch)
                trainer._count(rank_batch.step, agreed)
                if agreed.saved:
                    writer.advance()
                ended_s = time.monotonic()
                if rank_batch.step:  # the first warms up
                    seconds[kind].append(ended_s - began_s)
                if (rank_batch.step + 1) % every_steps == 0:
                    trainer._save()
                    seconds["pause"].append(time.monotonic() - ended_s)
        trainer.close()
        found = find_newest(trainer.run, print)
        assert found is not None
        size = sum(file.stat().st_size for file in found.path.iterdir())
    return seconds, size


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--every-steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| written | MB | pause, ms: median | first | largest of the others | step alone, ms | step meanwhile, ms |")
    print("|---|---|---|---|---|---|---|")
    for _ in range(options.rounds):
        for asynchronous in (True, False):
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as out:
                overrides = [f"data={options.data}", f"out={out}/run", "validation.split=null"]
                settings = compose("train", TrainSettings, overrides)
                settings.checkpoint.asynchronous = asynchronous
                seconds, size = measure(settings, options.every_steps)
            first, *others = seconds["pause"]
            alone, meanwhile = (
                f"{statistics.median(seconds[kind]) * 1e3:.0f}" if seconds[kind] else "–"
                for kind in ("step alone", "step meanwhile")
            )
            print(
                f"| {'beside training' if asynchronous else 'waited for'} | {size / 1e6:.0f} "
                f"| {statistics.median(others) * 1e3:.1f} | {first * 1e3:.1f} | {max(others) * 1e3:.1f} "
                f"| {alone} | {meanwhile} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
