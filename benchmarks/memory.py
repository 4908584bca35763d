"""Does a long run grow? Memory, threads and open files after every epoch.

    OMP_NUM_THREADS=1 python -m benchmarks.memory --data DATASET [--epochs 10]

One rank, ESMM as configured but small batches, validation and a checkpoint at each epoch's end.
"""

import argparse
import gc
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from jobs.entry import compose
from training.distributed.world import join
from training.run.malloc import keep_freed_memory
from training.run.settings import TrainSettings
from training.run.trainer import StepOutcome, Trainer


class MemoryTrainer(Trainer):
    """A trainer that prints a line as each epoch begins."""

    def _count(self, step: int, agreed: StepOutcome) -> None:
        super()._count(step, agreed)
        if step == 0:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            rss_mb, peak_mb = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
            files, objects = len(list(Path("/proc/self/fd").iterdir())), len(gc.get_objects())
            arrow_mb = pa.total_allocated_bytes() / 1e6
            print(
                f"| {self.position.epoch} | {rss_mb:.0f} | {peak_mb:.0f} | {arrow_mb:.0f} | {threading.active_count()} "
                f"| {files} | {objects:,} |",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()  # as jobs.train does
    print(
        "| epoch | RSS, MB | peak, MB | Arrow, MB | threads | open files | Python objects |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as out:
        overrides = [f"data={options.data}", f"out={out}/run", f"epochs={options.epochs + 1}"]
        overrides += [f"plan.batch_size={options.batch_size}"]
        settings = compose("train", TrainSettings, overrides)
        with join(settings.world) as world:
            MemoryTrainer(settings, world).fit()


if __name__ == "__main__":
    main()
