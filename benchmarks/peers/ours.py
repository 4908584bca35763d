"""Train one epoch of this project's ESMM and predict the test split: run by `python -m benchmarks.peers`.

    python -m benchmarks.peers.ours DATASET BATCH_SIZE OUT.npz

The loop is the trainer's own, less its journal and its checkpoint, which the peers' loops do not have either.
"""

import json
import resource
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np
import torch
from hydra import compose, initialize_config_module

from benchmarks.train import train_step
from jobs.entry import typed
from training.plan import Plan
from training.settings import TrainSettings
from training.trainer import Trainer, open_feed
from training.world import join

#: The best of six pairs by CTCVR AUC on validation impressions after 30 steps: the peers' is the best of three.
RATES = ("optimizer.towers.lr=2e-2", "optimizer.embeddings.lr=0.05")


def train(trainer: Trainer) -> float:
    """CPU seconds of one epoch, all threads: reading and decoding the Parquet files included."""
    next(iter(trainer.feed.batches(0)))  # loads the compiled kernels
    trainer.feed.close()
    start_s = time.process_time()
    for step, batch in trainer._batches():
        train_step(trainer, step, batch)
    return time.process_time() - start_s


def predict(trainer: Trainer) -> dict[str, np.ndarray]:
    """The columns that training.metrics wants, over the test split."""
    plan = trainer.settings.plan
    test_plan = Plan(trainer.manifest.files_of("test"), batch_size=plan.batch_size, lanes=plan.lanes, seed=None)
    feed = open_feed(trainer.settings, trainer.manifest, "test", test_plan, trainer.world)
    parts = []
    with torch.no_grad():
        for batch in feed.batches(0):
            columns = batch.labels | trainer.graph.predict(trainer.placed.network(batch, None))
            parts.append({"impression_id": batch.impression_id} | columns)
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def main() -> None:
    dataset, batch_size, out = sys.argv[1:]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as run, initialize_config_module("conf", version_base="1.3"):
        overrides = [f"data={dataset}", f"out={run}/run", "model=esmm", f"plan.batch_size={batch_size}", *RATES]
        settings = typed(TrainSettings, compose("train", [*overrides, "world.device=cpu"]))
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            cpu_s = train(trainer)
            peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            np.savez(out, **predict(trainer))
    report = {
        "cpu_us": 1e6 * cpu_s / trainer.plan.num_impressions,
        "peak_gb": peak_gb,
        "version": f"torchrec {version('torchrec')}, torch {torch.__version__}",
    }
    print(json.dumps(report))  # the last line of stdout is for the parent


if __name__ == "__main__":
    main()
