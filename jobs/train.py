"""torchrun --nproc-per-node 2 -m jobs.train data=DATASET model=esmm out=RUN"""

from jobs.entry import launch
from training.settings import TrainSettings
from training.trainer import Trainer
from training.world import join, speaks


def run(settings: TrainSettings) -> None:
    """Join the world, build or resume, train."""
    with join(settings.world) as world:
        Trainer(settings, world).fit()


if __name__ == "__main__":
    launch("train", TrainSettings, run, speaks=speaks())
