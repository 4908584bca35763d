"""The trainer: the dataset, the model on its ranks, and the loop between them."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from pipeline.manifest import InputError, Manifest, load_manifest
from training import checkpoint
from training.batch import Batch
from training.checkpoint import Checkpoint, Position
from training.continuation import carry_over, check_same_schema
from training.feed import Feed
from training.graph import Graph
from training.journal import Journal, say
from training.losses import log_loss_sums, share_of_rank
from training.model import EntireSpaceModel, to_device, without_emptiness
from training.place import Placed, place
from training.plan import Plan
from training.settings import TrainSettings, claim, load
from training.world import World


class Trainer:
    """One rank of one run."""

    def __init__(self, settings: TrainSettings, world: World) -> None:
        """Check everything that can be wrong, then build; resumes from the newest whole checkpoint of `settings.out`.

        Raises InputError, on every rank, for what does not fit the dataset or the run that is there.
        """
        self.settings, self.world, self.run = settings, world, Path(settings.out)
        self.manifest = load_manifest(settings.data)
        self.graph = check(settings, self.manifest, world.device)
        self.plan = Plan(
            self.manifest.files_of("train"),
            batch_size=settings.plan.batch_size,
            lanes=settings.plan.lanes,
            seed=settings.plan.seed,
            unit=settings.model.train_on,
        )
        self.feed = open_feed(settings, self.manifest, "train", self.plan, world)
        self._claim()
        found = checkpoint.agreed_newest(self.run, world, say)
        self.position = found.position if found else Position()
        self.finished = self.position.epoch >= settings.epochs
        if not self.finished:
            self.placed = build(settings, self.manifest, self.graph, world)
            if found:
                check_dataset(found, self.manifest, settings.data)
                checkpoint.restore(found, self.placed)
            elif settings.init_from:
                self._continue(Path(settings.init_from))

    def fit(self) -> None:
        """Train to the end of the last epoch."""
        if self.finished:
            self._say(f"{self.run} has its {self.settings.epochs} epochs already; nothing to do.")
            return
        journal = self._journal()
        try:
            while self.position.epoch < self.settings.epochs:
                epoch = self.position.epoch
                for step, batch in self._batches():
                    sums = self._forward(batch, step)
                    means = self._agree_on(sums, step)  # raises before a weight has changed
                    self._backward(sums, step)
                    if journal:
                        done = epoch * self.plan.num_steps + step + 1
                        journal.step(epoch, done, means, self.plan.step_size(step), self.feed.wait_s)
                self.position = Position(epoch + 1, 0)
                self._save()
        finally:
            if journal:
                journal.close()
        self._say(f"{self.run} is trained; evaluate it with: python -m jobs.evaluate run={self.run} split=test")

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """(step of the epoch, this rank's batch) from the position on; another rank's error is raised here too."""
        step = self.position.step
        batches = iter(self.feed.batches(self.position.epoch, step))
        while step < self.plan.num_steps:
            try:
                batch = next(batches)
            except InputError as error:
                self._agree_on(None, step, error)
            else:
                yield step, to_device(batch, self.world.device)
            step += 1

    def _forward(self, batch: Batch, step: int) -> Tensor:
        """This rank's sum of each loss."""
        run_step = self.position.epoch * self.plan.num_steps + step
        fields = (len(self.manifest.fields_of("context")), len(self.manifest.fields_of("impression")))
        whole = without_emptiness(batch, *fields)
        sums = log_loss_sums(self.graph, self.placed.network(whole, run_step), whole.labels)
        return sums if batch.num_impressions else sums * 0.0

    def _agree_on(self, sums: Tensor | None, step: int, error: InputError | None = None) -> list[float]:
        """The mean of each loss over the global batch; InputError on every rank where one failed or it is not finite."""
        table = torch.zeros(len(self.graph.losses) + 1, dtype=torch.float64, device=self.world.device)
        if sums is None:
            table[-1] = 1.0
        else:
            table[:-1] = sums.detach()
        *totals, num_failed = self.world.sum(table).tolist()
        if num_failed:
            self.world.agree(error)
        bad = [name for name, total in zip(self.graph.loss_names, totals, strict=True) if not math.isfinite(total)]
        if bad:
            raise InputError(
                f"The loss `{bad[0]}` is not finite at step {step} of epoch {self.position.epoch}; no weight was "
                "touched by that step, and the last checkpoint is good. Lower optimizer.embeddings.lr or "
                "optimizer.towers.lr, and start again in another out=…."
            )
        return [total / self.plan.step_size(step) for total in totals]

    def _backward(self, sums: Tensor, step: int) -> None:
        weights = self.graph.loss_weights
        self.placed.learn(share_of_rank(sums, self.world.size, self.plan.step_size(step), weights))

    def _save(self) -> None:
        steps_done = self.position.epoch * self.plan.num_steps + self.position.step
        checkpoint.save(self.run, self.placed, self.position, steps_done, xxh3_of(self.manifest), self.world)

    def _claim(self) -> None:
        error = None
        if self.world.rank == 0:
            try:
                claim(self.run, self.settings)
            except InputError as found:
                error = found
        self.world.agree(error)

    def _journal(self) -> Journal | None:
        if self.world.rank:
            return None
        num_steps = self.settings.epochs * self.plan.num_steps
        done = self.position.epoch * self.plan.num_steps + self.position.step
        if done:
            say(f"{self.run} goes on at step {done} of {num_steps}.")
        return Journal(self.run, self.settings.log, self.graph.loss_names, done, num_steps)

    def _continue(self, run: Path) -> None:
        """Start from the model that `run` came to, on this dataset."""
        before = load(run)
        old = load_manifest(before.data)
        found = checkpoint.agreed_newest(run, self.world, say)
        if found is None:
            raise InputError(f"init_from={run} has no whole checkpoint; train it to the end of an epoch first.")
        check_dataset(found, old, before.data)
        check_same_schema(before, old, self.settings, self.manifest)
        data = self.settings.data
        towers = carry_over(found.path, found.files, before.data, old, data, self.manifest, self.placed)
        checkpoint.load_towers(self.placed, towers, found)

    def _say(self, line: str) -> None:
        if self.world.rank == 0:
            say(line)


def check(settings: TrainSettings, manifest: Manifest, device: torch.device) -> Graph:
    """The behaviour graph, once the settings are known to fit the dataset and the device; InputError where not."""
    settings.optimizer.check_device(device)
    settings.embedding.check_fields(manifest.fields)
    settings.sharding.check_fields(manifest.fields)
    return Graph(settings.model.graph, list(manifest.labels))


def open_feed(settings: TrainSettings, manifest: Manifest, split: str, plan: Plan, world: World) -> Feed:
    """This rank's batches of `split`."""
    return Feed(
        settings.data,
        manifest,
        split,
        plan,
        rank=world.rank,
        world_size=world.size,
        pooling=settings.embedding.pooling_of(manifest.fields),
        settings=settings.feed,
    )


def build(settings: TrainSettings, manifest: Manifest, graph: Graph, world: World) -> Placed:
    """The model at its initial values, on its ranks."""
    model = EntireSpaceModel(
        manifest, graph, settings.embedding, settings.model.towers, settings.seed, settings.precision
    )
    return place(model, manifest.fields, settings.embedding, settings.optimizer, settings.sharding, world)


def xxh3_of(manifest: Manifest) -> str:
    """What tells two datasets apart."""
    return xxhash.xxh3_64_hexdigest(manifest.to_json().encode())


def check_dataset(found: Checkpoint, manifest: Manifest, data: str) -> None:
    """InputError where `manifest` is not that of the dataset which `found` was trained on."""
    if found.manifest_xxh3 != xxh3_of(manifest):
        raise InputError(
            f"data={data} is not the dataset that {found.path.parent.parent} was trained on: its manifest differs, so "
            "indices may mean other ids. Give that dataset, or train a new run (out=…)."
        )
