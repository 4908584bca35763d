"""jobs.train with a trace: each rank appends the impressions of every step to TRACE/rank-<r>.txt before it takes the step.

    TRACE=DIR torchrun … -m benchmarks.traced_rank data=DATASET out=RUN …

A line is `<step of the run> <impression ids>`, and reaches the file in one write, so a kill cannot tear two lines.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from jobs.entry import launch
from training.batch import Batch
from training.settings import TrainSettings
from training.trainer import Trainer
from training.world import join, speaks


class Traced(Trainer):
    """Writes down what it trains on."""

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        folder = Path(os.environ["TRACE"])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rank-{self.world.rank}.txt").open("ab", buffering=0) as trace:
            for step, batch in super()._batches():
                run_step = self.position.epoch * self.plan.num_steps + step
                ids = " ".join(str(number) for number in batch.impression_id.tolist())
                trace.write(f"{run_step} {ids}\n".encode())
                yield step, batch


def run(settings: TrainSettings) -> None:
    """As jobs.train."""
    with join(settings.world) as world:
        status = Traced(settings, world).fit()
    sys.exit(status)


if __name__ == "__main__":
    launch("train", TrainSettings, run, speaks=speaks())
