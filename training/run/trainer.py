"""The trainer: the dataset, the model on its ranks, and the loop between them."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from pipeline.locations import is_address
from pipeline.telemetry import enter_stage
from pipeline.terminal import styled
from training.checkpoint import restore as checkpoint
from training.checkpoint.meta import Position
from training.checkpoint.remote_run import RemoteRun, fetch_on_all_hosts, shared_copy
from training.checkpoint.save import CheckpointWriter
from training.distributed.rank_batches import RankBatch, rank_batches
from training.distributed.weight_average import WeightAverage
from training.distributed.world import Pending, World
from training.evaluation.health import without_positives
from training.feed.device_copy import on_device
from training.feed.plan import Plan
from training.model.losses import part_of_global_mean
from training.run.build import (
    build_model,
    check_position,
    check_settings,
    manifest_xxh3,
    open_feed,
    train_plan,
    train_towers,
    unit_without_sampling,
)
from training.run.closing import say_trained
from training.run.continuation import continue_from
from training.run.dataset_copy import check_dataset, keep_dataset
from training.run.interrupts import EXIT_CTRL_C, EXIT_REQUEUE, Interrupts, remove_requeue, write_requeue
from training.run.journal import ALERT, Journal, LoggedStep, say
from training.run.run_folder import check_config, claimed_run, lock_run, write_config
from training.run.sampled import expected_samples, open_sampler, write_samples
from training.run.settings import TrainSettings
from training.run.validation import Validation, best_of


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step over all ranks."""

    losses: list[float]  # the mean of each over the global batch, without its weight
    saved: bool  # every rank has done its part of the checkpoint that is on its way
    save: bool  # the clock says so
    requeue: bool  # a rank got SIGTERM or SIGUSR1
    ctrl_c: bool
    gradient_norm: Tensor | None = None  # of the towers, before clipping; None where the step was not taken

    @property
    def stops(self) -> bool:
        """Whether a signal ends the run after this step."""
        return self.requeue or self.ctrl_c


class Trainer:
    """One rank of one run."""

    def __init__(self, settings: TrainSettings, world: World) -> None:
        """Check everything that can be wrong, then build; resumes from the newest whole checkpoint of `settings.out`.

        Raises InputError, on every rank, for what does not fit the dataset or the run that is there.
        """
        self.settings, self.world, self.run = settings, world, Path(settings.out)
        self._remote: RemoteRun | None = None
        with ExitStack() as held:
            if is_address(settings.out):
                self._remote = held.enter_context(claimed_run(settings.out, world, self._say))
                self.run = self._remote.folder
            self._open()
            with world.agreeing():
                if world.rank == 0:  # whoever else trains it may write its settings and delete its checkpoints
                    held.enter_context(lock_run(self.run))
                    check_config(self.run, settings)
            self._resume()
            self._lock = held.pop_all()  # until `close`

    def _open(self) -> None:
        """Open the dataset, the feed and the validation, and check the settings against them."""
        settings, world = self.settings, self.world
        with world.agreeing():
            self.manifest = load_manifest(settings.data)
            self.graph = check_settings(settings, self.manifest, world.device)
            self._sampler = open_sampler(settings, self.manifest, "train")
            self._expected = expected_samples(self.run, settings, self.manifest, self._sampler)
            self.plan = train_plan(settings, self.manifest, self._expected)
            self.feed = open_feed(settings, self.manifest, "train", self.plan, world, self._sampler)
            self.validation = self._open_validation()
        self._begun_s = time.monotonic()
        self._interrupts = Interrupts()
        self._journal: Journal | None = None

    def _resume(self) -> None:
        """Take the position of the newest checkpoint and build the model there, unless the run is finished."""
        settings, world = self.settings, self.world
        found = checkpoint.find_on_all_ranks(self.run, world, say, renames=True)
        self.position, self.validation_state = (found.position, found.validation) if found else (Position(0, 0), None)
        self._window = found.window if found else None
        if self.validation and self.validation_state:
            self.validation_state = self.validation.resumed(self.validation_state, self._say)
        if found:
            with world.agreeing():
                check_dataset(found, self.manifest, settings.data)
                check_position(found, self.plan)
        with world.agreeing():
            if world.rank == 0:
                keep_dataset(self.run, settings.data, self.manifest)
                write_config(self.run, settings)
                write_samples(self.run, self.manifest, self._sampler, self._expected)
                self._publish()
        self._saved, self._saved_s = (self.steps_done, self.validation_state), time.monotonic()
        if self.finished:
            return
        self.model = build_model(settings, self.manifest, self.graph, world)
        self._loss_weights = on_device(self.graph.loss_weights, torch.float32, world.device)
        self._loss_sums = train_towers(self.model, self.graph, settings, world)
        self.average = (
            WeightAverage(self.model, settings.average, self.plan.num_steps) if settings.average.is_on else None
        )
        if found:
            with world.agreeing():
                checkpoint.restore(found, self.model)
                if self.average:
                    checkpoint.restore_average(found, self.average)
        elif settings.init_from:
            continue_from(self._initial_run(), settings, self.manifest, self.graph, self.model, world)
        if self._remote and world.local_rank == 0:
            self._remote.drop_checkpoints()
        xxh3 = manifest_xxh3(self.manifest)
        self._writer = CheckpointWriter(
            self.run, self.model, xxh3, world, settings.checkpoint, self.average, self._remote
        )

    def _initial_run(self) -> Path:
        """Return `init_from`, or this host's copy of it."""
        address = str(self.settings.init_from)
        if not is_address(address):
            return Path(address)
        copy = shared_copy(address, "init_from", self.world)
        fetch_on_all_hosts(copy, self.world, say, self.settings.init_from_checkpoint)
        return copy.folder

    def _publish(self) -> None:
        """Bring what rank 0 has written of a run at an address to it."""
        if self._remote and self.world.rank == 0:
            self._remote.claim.check()
            self._remote.publish()

    @property
    def steps_done(self) -> int:
        """The steps of the run so far, over all epochs."""
        return self.position.epoch * self.plan.num_steps + self.position.step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping has ended them."""
        return self.position.epoch >= self.settings.epochs or self.settings.early_stopping.is_over(
            self.validation_state
        )

    @property
    def _stopped_early(self) -> bool:
        return self.finished and self.position.epoch < self.settings.epochs

    def _early_stop(self) -> str:
        assert self.validation_state is not None
        return (
            f"{self.run} is stopped early after step {self.steps_done} of {self.settings.epochs * self.plan.num_steps}: "
            f"{self.validation_state.num_worse} validations in a row were not better than the "
            f"{best_of(self.validation_state)} (early_stopping.patience={self.settings.early_stopping.patience})"
        )

    def fit(self) -> int:
        """Train to the end, or until a signal asks to stop; the exit status of the process (`training.run.interrupts`)."""
        if self.finished:
            with closing(self):
                if self._stopped_early:
                    self._say(f"{self._early_stop()}; nothing to do: raise early_stopping.patience to train on.")
                    return 0
                self._say(f"{self.run} has its {self.position.epoch} epochs already; nothing to do.")
            return 0
        labels = dict.fromkeys(self.graph.label_of(edge.node) for edge in self.graph.edges)
        for line in without_positives(self.manifest.totals["train"], labels):
            self._say(f"{styled(ALERT, 'red', sys.stderr)} {line}")
        with closing(self), self._journal_open(), self._interrupts:
            with self._writer:  # at the end of which all that was saved is whole
                stopped = self._train()
            if stopped:
                return self._stop(stopped)
        if self._stopped_early:
            self._say(f"{self._early_stop()}.")
        if self.world.rank == 0:
            say_trained(self.run, self.settings.model.name, time.monotonic() - self._begun_s, self.validation_state)
        return 0

    def _train(self) -> StepOutcome | None:
        """Train to the end and return None; or save at the step at which a signal stops the run, and return its outcome."""
        enter_stage("train")
        if not self._validate():  # what a signal kept the last start from
            return self._signals()
        if self.finished:  # by that
            self._save()
        while not self.finished:
            for rank_batch in self.batches():
                agreed = self.step(rank_batch)
                self._count(rank_batch.step, agreed)
                if agreed.saved:
                    self._writer.advance()
                if agreed.stops and not self.finished:
                    self._save()
                    return agreed
                if not self._validate():
                    self._save()
                    return self._signals()
                if self._save_is_due(agreed):
                    self._save()
                if self.finished:
                    break
        return None

    def close(self) -> None:
        """Stop reading, and unlock the run."""
        with self._lock:
            self.feed.close()
            if self.validation:
                self.validation.close()

    def batches(self) -> Iterator[RankBatch]:
        """Yield this rank's batch of each step of the epoch, from the position on."""
        steps = range(self.position.step, self.plan.num_steps)
        return rank_batches(self.feed, self.position.epoch, steps, self.model.exchange, self.world.device)

    def step(self, rank_batch: RankBatch) -> StepOutcome:
        """Take one step of training.

        Raises InputError on every rank, before any weight changes, if a rank failed or a loss is not finite.
        """
        run_step = self.position.epoch * self.plan.num_steps + rank_batch.step
        forward_pass = self.model.forward(rank_batch.batch, rank_batch.ids, run_step)
        sums = self._loss_sums(forward_pass.logits, rank_batch.batch.labels)
        if not rank_batch.num_impressions:
            sums = sums * 0.0
        agreeing = self._start_agreement(sums, rank_batch)
        loss = part_of_global_mean(sums, self.plan.step_size(rank_batch.step), self._loss_weights)
        self.model.differentiate(loss)
        rank_batch.send_next()
        agreed = self._outcome(agreeing, rank_batch)
        agreed = replace(agreed, gradient_norm=self.model.learn(forward_pass))
        self._average(run_step + 1)
        return agreed

    def _average(self, steps_done: int) -> None:
        """Count the weights after `steps_done` steps in their average."""
        if self.average:
            if self.average.takes_snapshot(steps_done):
                self._writer.wait_until_written()
            self.average.update(steps_done)

    def predicting(self) -> AbstractContextManager[None]:
        """Have `self.model` predict, inside the block, with the average of its weights, where there is one."""
        if self.average is None:
            return nullcontext()
        self._writer.wait_until_written()
        return self.average.in_place()

    def _start_agreement(self, sums: Tensor, rank_batch: RankBatch) -> Pending:
        """Begin to sum over the ranks: the losses, then whether this rank failed, has done its part of a checkpoint, …"""
        error = rank_batch.error or (self._journal.error if self._journal else None)
        flags = (
            error is not None,
            self._writer.is_ready,
            self._clock_is_due(),
            self._interrupts.requeue,
            self._interrupts.ctrl_c,
        )
        table = torch.cat([sums.detach().double(), on_device(flags, torch.float64, self.world.device)])
        return self.world.start_sum_for_host(table)

    def _outcome(self, agreeing: Pending, rank_batch: RankBatch) -> StepOutcome:
        *totals, num_failed, num_ready, save, requeue, ctrl_c = agreeing.wait().tolist()
        if num_failed:
            self.world.agree(rank_batch.error or (self._journal.error if self._journal else None))
        bad = [name for name, total in zip(self.graph.loss_names, totals, strict=True) if not math.isfinite(total)]
        if bad:
            groups = self.plan.row_groups_of(self.position.epoch, rank_batch.step)
            raise InputError(
                f"The loss `{bad[0]}` is not finite at step {rank_batch.step} of epoch {self.position.epoch}, which reads "
                f"{_listed([f'{file} row group {number}' for file, number in groups])}; no weight was "
                "touched by that step, and the last checkpoint is good. Lower optimizer.embeddings.lr or "
                "optimizer.towers.lr, and start again in another out=…."
            )
        means = [total / self.plan.step_size(rank_batch.step) for total in totals]
        return StepOutcome(means, num_ready == self.world.size, bool(save), bool(requeue), bool(ctrl_c))

    def _count(self, step: int, agreed: StepOutcome) -> None:
        """Advance the position past `step` of the epoch, and log the step."""
        epoch, is_last = self.position.epoch, step + 1 == self.plan.num_steps
        self.position = Position(epoch + 1, 0) if is_last else Position(epoch, step + 1)
        if self._journal:
            assert agreed.gradient_norm is not None
            rates = self.model.learning_rates(self.steps_done - 1)
            count = self.plan.step_size(step)
            logged = LoggedStep(epoch, self.steps_done, agreed.losses, count, rates, agreed.gradient_norm)
            self._journal.step(logged, self.feed.wait_s)

    def _validate(self) -> bool:
        """Validate if it is due and not yet done.

        Returns False if a signal interrupted it: the next start repeats it. (After the last step no signal does.)
        """
        is_due = self.settings.validation.is_due(self.steps_done, self.position.step == 0)
        if (
            not is_due
            or self.validation is None
            or (self.validation_state and self.validation_state.total_steps == self.steps_done)
        ):
            return True
        enter_stage("validation")
        with self.predicting():
            figures = self.validation.figures(
                self.model, self.world, lambda: not self.finished and self._interrupts.stops
            )
        enter_stage("train")
        if figures is None:
            return False
        self.validation_state = self.validation.update(figures, self.steps_done, self.validation_state)
        state = self.validation_state
        if self._journal:
            stops = self.settings.early_stopping.is_over(state)
            self._journal.validated(self.position.epoch, state, figures, stops)
            if stops:
                last = self.steps_done - 1
                rates = self.model.learning_rates(last)
                self._journal.end_early(last // self.plan.num_steps, self.steps_done, rates, self.feed.wait_s)
        if state.best is not None and state.best_steps == self.steps_done:
            self._save()
        return True

    def _signals(self) -> StepOutcome:
        """Agree on signals where there is no step to agree on them with."""
        requeue, ctrl_c = self.world.max([int(self._interrupts.requeue), int(self._interrupts.ctrl_c)])
        return StepOutcome([], False, False, bool(requeue), bool(ctrl_c))

    def _clock_is_due(self) -> bool:
        every_s = self.settings.checkpoint.every_minutes * 60.0
        return self.world.rank == 0 and 0.0 < every_s <= time.monotonic() - self._saved_s

    def _save_is_due(self, agreed: StepOutcome) -> bool:
        every = self.settings.checkpoint.every_steps
        by_steps = every > 0 and self.steps_done % every == 0
        return agreed.save or by_steps or self.position.step == 0 or self.finished

    def _save(self) -> None:
        if self._saved == (self.steps_done, self.validation_state):
            return
        self.world.agree(self._journal.error if self._journal else None)  # else the log would lack a step for good
        window = self._journal.window if self._journal else None
        self._writer.save(self.position, self.steps_done, self.validation_state, window)
        self._saved, self._saved_s = (self.steps_done, self.validation_state), time.monotonic()

    def _stop(self, agreed: StepOutcome) -> int:
        """Write RUN/REQUEUE if a scheduler stopped the run, and return the exit status."""
        line = f"{self.run} is stopped and saved after step {self.steps_done}; the same command resumes there."
        with self.world.agreeing():
            if agreed.requeue and self.world.rank == 0:
                write_requeue(self.run, line)
        self.world.barrier()  # for the launcher ends the other ranks when the first one has ended
        self._say(line)
        return EXIT_REQUEUE if agreed.requeue else EXIT_CTRL_C

    @contextmanager
    def _journal_open(self) -> Iterator[None]:
        """Write the journal on rank 0 for the length of the block."""
        num_steps = self.settings.epochs * self.plan.num_steps
        with self.world.agreeing():
            if self.world.rank == 0:
                remove_requeue(self.run)
                weights = dict(zip(self.graph.loss_names, self.graph.loss_weights, strict=True))
                self._journal = Journal(self.run, self.settings.log, weights, self.steps_done, num_steps, self._window)
                self._publish()
        if self.steps_done:
            self._say(f"{self.run} resumes at step {self.steps_done} of {num_steps}.")
        try:
            yield
        finally:
            if self._journal:
                self._journal.close()
                self._journal = None
        with self.world.agreeing():
            self._publish()

    def _open_validation(self) -> Validation | None:
        split = self.settings.validation.split
        totals = self.manifest.totals.get(split, {}) if split else {}
        if split is None or totals.get("impressions", 0) == 0:
            return None
        files, plan = self.manifest.files_of(split), self.settings.plan
        in_order = Plan(files, batch_size=plan.batch_size, lanes=plan.lanes, seed=None)
        weighs = self._sampler is not None and self._sampler.weighs
        sampler = open_sampler(self.settings, self.manifest, split) if weighs else None
        feed = open_feed(self.settings, self.manifest, split, in_order, self.world, sampler)
        count = totals[unit_without_sampling(self.settings.model)]
        return Validation(self.manifest, self.graph, in_order, feed, count, self.settings.early_stopping)

    def _say(self, line: str) -> None:
        if self.world.rank == 0:
            say(line)


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
