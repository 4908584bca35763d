"""A running average of the weights, kept beside training: the weights that predict.

At constant learning rates the last weights jitter around a good place. Where positives are rare, the jitter of a tower's
bias alone moves all its probabilities. The average over the later steps jitters far less, and ranks no worse.

The weights after step t count t^power times (Shamir and Zhang, ICML 2013, "Stochastic Gradient Descent for Non-smooth
Optimization", §4: polynomial-decay averaging). With q = power + 1, the average moves from step s to step t by

    average ← average + c · (weights − average),    c = 1 − (s / t)^q

and the weights after t stand for all steps after s. c depends on s and t alone, and on no number of planned steps: a run
that is resumed, trained further or stopped early has the average that it would have had.

    towers, and the first rows of each table    after every step: s = t − 1
    the other rows                              in snapshots, some steps apart: s is the one before

Rows are numbered by falling count, so a step touches most of the first rows, and few of the others: a pass over those
costs little a snapshot, and too much a step. A row that no step has touched has its value still, so its average is right
without a record of who touched it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from training.distributed.settings import FREQUENT_ROWS, AverageSettings, AverageState
from training.distributed.sharded_model import Shard, ShardedModel

_ROWS_IN_EXCHANGE = 1 << 16


class WeightAverage:
    """This rank's part of the average of `model`: its rows of the tables, and the towers, which every rank has.

    `frequent`, `others` and `towers` are there from the first `update` on, or from a checkpoint's average.
    """

    def __init__(self, model: ShardedModel, settings: AverageSettings, steps_per_epoch: int) -> None:
        self._model, self._power = model, settings.power
        self._every = max(1, steps_per_epoch // settings.snapshots)
        self.frequent: list[Shard] = []  # changed by every update
        self.others: list[Shard] = []  # changed by snapshots
        self.towers: dict[str, Tensor] = {}
        self.state: AverageState | None = None  # until the first step

    @property
    def shards(self) -> list[Shard]:
        """The average of this rank's rows of the tables."""
        return self.frequent + self.others

    def takes_snapshot(self, steps_done: int) -> bool:
        """Tell whether `update(steps_done)` counts all rows."""
        return self.state is None or (steps_done - self.state.since) % self._every == 0

    def update(self, steps_done: int) -> None:
        """Count the weights as they are after `steps_done` steps of the run; called after every step."""
        takes_snapshot = self.takes_snapshot(steps_done)
        state = self.state or self._begin(steps_done - 1)
        _move(self._often, _weight_of_new(state.steps, steps_done, state))
        self.state = replace(state, steps=steps_done)
        if takes_snapshot:
            _move(self._seldom, _weight_of_new(state.snapshot, steps_done, state))
            self.state = replace(self.state, snapshot=steps_done)

    def goes_on_from(self, state: AverageState | None) -> bool:
        """Take memory for the average that a checkpoint has, unless it has none, or one of another power."""
        if state is None or state.power != self._power:
            return False
        self._allocate()
        self.state = state
        return True

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model predict with the average inside the block, without the memory of a second model.

        Weights and averages change places, and back at its end: to the bit, for nothing is computed. Before the first
        step the model stays as it is.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _begin(self, since: int) -> AverageState:
        self._allocate()
        return AverageState(self._power, since, since, since)

    def _allocate(self) -> None:
        """Take the memory of an average of zeros, which the first update replaces."""
        parameters = {name: parameter.detach() for name, parameter in self._model.towers.named_parameters()}
        self.towers = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.frequent, self.others = [], []
        #: (average, weights), which `update` moves.
        self._often = list(zip(self.towers.values(), parameters.values(), strict=True))
        self._seldom: list[tuple[Tensor, Tensor]] = []
        for live in self._model.shards:
            cut = min(max(0, FREQUENT_ROWS - live.first_row), len(live.weight))
            for shards, pairs, first, weight in (
                (self.frequent, self._often, 0, live.weight[:cut]),
                (self.others, self._seldom, cut, live.weight[cut:]),
            ):
                if len(weight):
                    average = torch.zeros_like(weight)
                    shards.append(Shard(live.table, live.first_row + first, average, {}, live.saved))
                    pairs.append((average, weight))

    @torch.no_grad()
    def _exchange(self) -> None:
        if self.state is None:
            return
        for average, weights in (*self._often, *self._seldom):
            for start in range(0, len(weights), _ROWS_IN_EXCHANGE):
                rows = slice(start, start + _ROWS_IN_EXCHANGE)
                kept = weights[rows].clone()
                weights[rows] = average[rows]
                average[rows] = kept


def _weight_of_new(before: int, now: int, state: AverageState) -> float:
    """Return c, where the average has the steps of the run up to `before`, and the weights are those after `now`."""
    return 1.0 - float((before - state.since) / (now - state.since)) ** (state.power + 1.0)


def _move(pairs: Sequence[tuple[Tensor, Tensor]], weight_of_new: float) -> None:
    """Move the first of each pair towards the second, in place."""
    if pairs:
        averages, weights = map(list, zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, weights, weight_of_new)
