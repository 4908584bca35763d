"""jobs.train with a trace: each rank appends the impressions of every step to TRACE/rank-<r>.txt before it takes the step.

    TRACE=DIR torchrun … -m benchmarks.traced_rank data=DATASET out=RUN …

A line is `<step of the run> <impression ids>`, and reaches the file in one write, so a kill cannot tear two lines.
"""

import os
import sys
from pathlib import Path

from jobs.entry import launch
from training.distributed.rank_batches import RankBatch
from training.distributed.torchrun import note_error, rank_of_process, speaks
from training.distributed.world import World, join
from training.run.settings import TrainSettings
from training.run.trainer import StepOutcome, Trainer


class TracingTrainer(Trainer):
    """A trainer that writes the impressions of every step to a file."""

    def __init__(self, settings: TrainSettings, world: World) -> None:
        super().__init__(settings, world)
        folder = Path(os.environ["TRACE"])
        folder.mkdir(parents=True, exist_ok=True)
        self._trace = folder / f"rank-{world.rank}.txt"

    def step(self, rank_batch: RankBatch) -> StepOutcome:
        """Write the impressions of the step to the trace, then take it."""
        ids = " ".join(map(str, rank_batch.batch.impression_id[: rank_batch.num_impressions].tolist()))
        with self._trace.open("ab", buffering=0) as trace:
            trace.write(f"{self.steps_done} {ids}\n".encode())
        return super().step(rank_batch)


def run(settings: TrainSettings) -> None:
    """Train as jobs.train does."""
    with join(settings.world) as world:
        status = TracingTrainer(settings, world).fit()
    sys.exit(status)


if __name__ == "__main__":
    launch("train", TrainSettings, run, speaks=speaks(), rank=rank_of_process(), note_error=note_error)
