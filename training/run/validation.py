"""Validation while a run trains: exact figures over all ranks, which of them is the best, and when to stop for want of a better."""

import math
from collections.abc import Callable

import numpy as np
import torch

from pipeline.dataset.manifest import LABELS, Manifest
from pipeline.errors import InputError
from training.checkpoint.files import ValidationState
from training.distributed.rank_batches import RankBatch, rank_batches
from training.distributed.sharded_model import ShardedModel
from training.distributed.world import World
from training.evaluation import metrics
from training.evaluation.ranking import auc
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.model.graph import Graph
from training.model.losses import loss_sums
from training.run.settings import EarlyStoppingSettings

LOSS = "loss"


class Validation:
    """Judges the model on one split; every rank takes part.

    Its loss has the denominator of the training loss: the `count` of units of the split that the model trains on, which
    are impressions, or clicks for a model that trains on clicks. AUCs are over whatever their task is defined on.
    Raises InputError where `early_stopping.metric` is not among the figures that the model's outputs allow.
    """

    def __init__(
        self,
        manifest: Manifest,
        graph: Graph,
        plan: Plan,
        feed: Feed,
        count: int,
        early_stopping: EarlyStoppingSettings,
    ) -> None:
        self._graph, self._plan, self._feed, self._count = graph, plan, feed, count
        self._labels = [label for label in LABELS if label in manifest.labels]
        self._columns = [*self._labels, *graph.outputs]
        nothing = {name: np.empty(0, np.float32) for name in self._columns}
        self.names = [LOSS, *(f"{task.name}_auc" for task in metrics.tasks(nothing))]
        self.metric = early_stopping.metric or self.names[-1]
        if self.metric not in self.names:
            raise InputError(
                f"early_stopping.metric={self.metric} is not one of {', '.join(self.names)}, which are what a "
                "validation of this model gives."
            )

    def figures(
        self, model: ShardedModel, world: World, stops: Callable[[], bool] = lambda: False
    ) -> dict[str, float | None] | None:
        """name → figure over the whole split, on every rank; None for an AUC without both classes.

        None in place of it all where `stops`, asked before each batch, says so on any rank. Raises InputError, on every
        rank, where one cannot read its batch.
        """
        columns, losses = [torch.empty(len(self._columns), 0)], torch.zeros(1, dtype=torch.float64)
        steps = range(self._plan.num_steps)
        for rank_batch in rank_batches(self._feed, 0, steps, model.exchange, world.device):
            agreeing = rank_batch.start_agreement(world, stops())
            column_CN, loss = self._predict(model, rank_batch)
            rank_batch.send_next()
            if rank_batch.agreed(agreeing, world):
                return None
            columns.append(column_CN)
            losses += loss
        whole_CN = world.collect(torch.cat(columns, dim=1))
        totals = torch.zeros(len(self.names), dtype=torch.float64)
        totals[0] = losses[0] / self._count if self._count else math.nan
        if whole_CN is not None:
            totals[1:] = torch.tensor(self._aucs(whole_CN.numpy()))
        values = world.sum(totals.to(world.device)).tolist()
        return {name: None if math.isnan(value) else value for name, value in zip(self.names, values, strict=True)}

    @torch.no_grad()
    def _predict(self, model: ShardedModel, rank_batch: RankBatch) -> tuple[torch.Tensor, float]:
        """The columns [C, N] of this rank's impressions, and its sum of all losses."""
        logits, labels = model.predict(rank_batch.batch, rank_batch.ids), rank_batch.batch.labels
        predicted = {name: column.float() for name, column in self._graph.predict(logits).items()}
        columns = torch.stack([{**labels, **predicted}[name] for name in self._columns])
        if not rank_batch.num_impressions:
            return columns[:, :0].cpu(), 0.0
        return columns.cpu(), float(loss_sums(self._graph, logits, labels).double().sum())

    def _aucs(self, whole_CN: np.ndarray) -> list[float]:
        columns = dict(zip(self._columns, whole_CN, strict=True))
        for name in self._labels:
            columns[name] = columns[name].astype(bool)
        found = []
        for task in metrics.tasks(columns):
            judged_N = columns["click"] if task.clicked_only else slice(None)
            value = auc(task.label_N[judged_N], columns[task.score][judged_N])
            found.append(float("nan") if value is None else value)
        return found

    def judge(
        self, figures: dict[str, float | None], steps_done: int, before: ValidationState | None
    ) -> ValidationState:
        """Count this validation in; only a strictly better one is the new best."""
        value, best = figures[self.metric], before.best if before else None
        gain = -1 if self.metric == LOSS else 1
        if before is None or (value is not None and (best is None or gain * value > gain * best)):
            return ValidationState(steps_done, best=value, best_steps=steps_done, num_worse=0)
        return ValidationState(steps_done, best, before.best_steps, before.num_worse + 1)

    def close(self) -> None:
        """Stop reading."""
        self._feed.close()
