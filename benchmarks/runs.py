"""One training run inside this process, and its AUCs; used by the commands that compare configurations.

The loop is the trainer's own, less its journal and its checkpoints.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from jobs.entry import compose
from training.checkpoint.meta import Position
from training.distributed.world import join
from training.evaluation import metrics
from training.evaluation.ranking import auc
from training.feed.plan import Plan
from training.run.build import open_feed
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

#: Figures of a run beside its AUCs.
CPU_S, CONTEXTS = "cpu_s", "contexts_a_batch"


def run(data: str, overrides: Sequence[str], split: str, truth: str | None = None) -> dict[str, float]:
    """Train all epochs of `jobs.train data=… OVERRIDES` on one rank and thread; return figures of `split` by name.

    ctr_auc, cvr_auc (clicked impressions), ctcvr_auc, as far as the model has them; with the simulator's true
    probabilities (the file `truth`) also cvr_all_auc (all impressions); cpu_s of training, all threads, reading
    included; contexts_a_batch.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        settings = compose("train", TrainSettings, [f"data={data}", f"out={out}/run", *overrides])
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            figures = train(trainer)
            with trainer.predicting():
                columns = predict(trainer, split)
            return figures | auc_figures(columns, truth)


def train(trainer: Trainer) -> dict[str, float]:
    """Train all epochs; return the CPU seconds, and the mean number of distinct contexts in a full batch."""
    next(iter(trainer.feed.batches(0)))  # loads the compiled kernels
    trainer.feed.close()
    contexts: list[int] = []
    start_s = time.process_time()
    for epoch in range(trainer.settings.epochs):
        trainer.position = Position(epoch, 0)
        for rank_batch in trainer.batches():
            trainer.step(rank_batch)
            contexts.append(len(set(rank_batch.batch.context_id)))
    cpu_s = time.process_time() - start_s
    return {CPU_S: cpu_s, CONTEXTS: float(np.mean(contexts[: trainer.plan.num_steps - 1] or contexts))}


def predict(trainer: Trainer, split: str) -> dict[str, np.ndarray]:
    """Predict `split`: impression_id, labels and the model's outputs, the columns of training.evaluation.metrics."""
    plan = trainer.settings.plan
    in_order = Plan(trainer.manifest.files_of(split), batch_size=plan.batch_size, lanes=plan.lanes, seed=None)
    feed = open_feed(trainer.settings, trainer.manifest, split, in_order, trainer.world)
    parts = []
    for batch in feed.batches(0):
        columns = batch.labels | trainer.graph.predict(trainer.model.predict(batch))
        parts.append({"impression_id": batch.impression_id} | columns)
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def auc_figures(columns: dict[str, np.ndarray], truth: str | None) -> dict[str, float]:
    """Return the AUCs by name, without those that lack one of the two classes."""
    figures = {}
    for task in metrics.tasks(columns):
        chosen = columns["click"].astype(bool) if task.clicked_only else slice(None)
        figures[f"{task.name}_auc"] = auc(task.label_N[chosen], columns[task.score][chosen])
    if truth is not None:
        table = pq.read_table(Path(truth), columns=["impression_id", "p_ctr", "p_cvr"])
        true = {name: table.column(name).to_numpy() for name in table.column_names}
        figures["cvr_all_auc"] = metrics.oracle_metrics(columns, true).get("cvr_all_auc")
    return {name: float(value) for name, value in figures.items() if value is not None}
