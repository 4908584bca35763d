"""torchrun --nproc-per-node 2 -m jobs.train data=DATASET model=esmm out=RUN"""

import sys

from jobs.entry import launch
from training.distributed.world import join, speaks
from training.run.malloc import keep_freed_memory
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def run(settings: TrainSettings) -> None:
    """Join the world, build or resume, train; a run that a signal has stopped ends with a status that says so."""
    keep_freed_memory()
    with join(settings.world) as world:
        status = Trainer(settings, world).fit()
    sys.exit(status)


if __name__ == "__main__":
    launch("train", TrainSettings, run, speaks=speaks())
