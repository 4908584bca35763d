"""Validation while a run trains: exact figures over all ranks, which of them is the best, and early stopping."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from pipeline.dataset.manifest import LABELS, Manifest
from pipeline.errors import InputError
from training.checkpoint.meta import ValidationState
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


def best_of(state: ValidationState) -> str:
    """Return the best validation up to `state` in words."""
    if state.best is None:
        return f"{state.metric or 'early_stopping.metric'}, which is undefined so far"
    return f"best {state.metric or 'early_stopping.metric'}, {state.best:.4f} after step {state.best_steps}"


class Validation:
    """The validation of a model on one split; every rank takes part.

    Its loss is what training minimises, the sum of all losses, each times its weight, with the denominator of the training
    loss: the `count` of units of the split that the model trains on, which are impressions, or clicks for a model that
    trains on clicks. AUCs are over whatever their task is defined on.
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
        """Return name → figure over the whole split, on every rank; an AUC without both classes is None.

        Returns None if `stops`, called before each batch, is true on any rank. Raises InputError on every rank if one
        cannot read its batch.
        """
        columns, losses = [torch.empty(len(self._columns), 0)], torch.zeros(1, dtype=torch.float64)
        steps = range(self._plan.num_steps)
        for rank_batch in rank_batches(self._feed, 0, steps, model.exchange, world.device):
            agreeing = rank_batch.start_agreement(world, stops())
            columns_of_batch, loss = self._predict(model, rank_batch)
            rank_batch.send_next()
            if rank_batch.agreed(agreeing, world):
                return None
            columns.append(columns_of_batch)
            losses += loss
        all_columns = world.collect(torch.cat(columns, dim=1))
        totals = torch.zeros(len(self.names), dtype=torch.float64)
        totals[0] = losses[0] / self._count if self._count else math.nan
        if all_columns is not None:
            totals[1:] = torch.tensor(self._aucs(all_columns.numpy()))
        values = world.sum(totals.to(world.device)).tolist()
        return {name: None if math.isnan(value) else value for name, value in zip(self.names, values, strict=True)}

    @torch.no_grad()
    def _predict(self, model: ShardedModel, rank_batch: RankBatch) -> tuple[torch.Tensor, float]:
        """Return the columns of this rank's impressions, [columns, N], and its weighted sum of all losses."""
        logits, labels = model.predict(rank_batch.batch, rank_batch.ids), rank_batch.batch.labels
        predicted = {name: column.float() for name, column in self._graph.predict(logits).items()}
        columns = torch.stack([{**labels, **predicted}[name] for name in self._columns])
        if not rank_batch.num_impressions:
            return columns[:, :0].cpu(), 0.0
        sums = loss_sums(self._graph, logits, labels).double()
        return columns.cpu(), float((sums * sums.new_tensor(self._graph.loss_weights)).sum())

    def _aucs(self, all_columns: np.ndarray) -> list[float]:
        columns = dict(zip(self._columns, all_columns, strict=True))
        for name in self._labels:
            columns[name] = columns[name].astype(bool)
        found = []
        for task in metrics.tasks(columns):
            counted_N = columns["click"] if task.clicked_only else slice(None)
            value = auc(task.label_N[counted_N], columns[task.score][counted_N])
            found.append(float("nan") if value is None else value)
        return found

    def update(
        self, figures: dict[str, float | None], steps_done: int, before: ValidationState | None
    ) -> ValidationState:
        """Return the state after this validation; only a strictly better one is the new best.

        An undefined figure is neither better nor worse: the validation counts for nothing.
        """
        value = figures[self.metric]
        if value is None:
            if before is None:
                return ValidationState(steps_done, best=None, best_steps=steps_done, num_worse=0, metric=self.metric)
            return replace(before, total_steps=steps_done)
        gain = -1 if self.metric == LOSS else 1
        if before is None or before.best is None or gain * value > gain * before.best:
            return ValidationState(steps_done, best=value, best_steps=steps_done, num_worse=0, metric=self.metric)
        return replace(before, total_steps=steps_done, num_worse=before.num_worse + 1)

    def resumed(self, before: ValidationState, say: Callable[[str], None]) -> ValidationState:
        """Return the state that a checkpoint had, without its best where that is of another metric, which `say` tells."""
        if before.metric in (None, self.metric):  # None: an older release saved it
            return replace(before, metric=self.metric)
        say(
            f"early_stopping.metric was {before.metric} and is {self.metric}: the {best_of(before)}, counts no longer, "
            "and the next validation is the first to be compared."
        )
        return ValidationState(before.total_steps, None, before.total_steps, 0, self.metric)

    def close(self) -> None:
        """Stop reading."""
        self._feed.close()
