"""Train one epoch of this project's ESMM and predict the test split: run by `python -m benchmarks.peers`.

    python -m benchmarks.peers.ours DATASET BATCH_SIZE OUT.npz

The loop is the trainer's own, less its journal and its checkpoint, which the peers' loops do not have either, at the
trainer's default rates.
"""

import json
import resource
import sys
import tempfile
from importlib.metadata import version

import numpy as np
import torch

from benchmarks.runs import CPU_S, predict, train
from jobs.entry import compose
from training.distributed.world import join
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def main() -> None:
    dataset, batch_size, out = sys.argv[1:]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as run:
        overrides = [f"data={dataset}", f"out={run}/run", "model=esmm", f"plan.batch_size={batch_size}"]
        settings = compose("train", TrainSettings, [*overrides, "world.device=cpu"])
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            cpu_s = train(trainer)[CPU_S]
            peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            np.savez(out, **predict(trainer, "test"))
    report = {
        "cpu_us": 1e6 * cpu_s / trainer.plan.num_impressions,
        "peak_gb": peak_gb,
        "version": f"torchrec {version('torchrec')}, torch {torch.__version__}",
    }
    print(json.dumps(report))  # the last line of stdout is for the parent


if __name__ == "__main__":
    main()
