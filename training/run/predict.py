"""Predict a split with a trained model: one row an impression, written as it is predicted."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from pipeline.dataset.manifest import DatasetFile, Manifest, load_manifest
from pipeline.errors import InputError, writing
from pipeline.undo import undone_by
from training.checkpoint import restore as checkpoint
from training.checkpoint.meta import Checkpoint
from training.checkpoint.settings import NEWEST
from training.distributed.rank_batches import rank_batches
from training.distributed.sharded_model import ShardedModel
from training.distributed.world import World
from training.feed.batch import UNKNOWN_GROUP, Batch
from training.feed.plan import Plan
from training.model.graph import Graph
from training.run.build import (
    build_model,
    check_position,
    check_settings,
    for_predictions,
    manifest_xxh3,
    open_feed,
    settings_to_predict,
    train_plan,
)
from training.run.continuation import restore_elsewhere, with_moments_of
from training.run.dataset_copy import check_dataset
from training.run.journal import say
from training.run.oracle import Oracle
from training.run.provenance import METADATA_KEY, Provenance
from training.run.run_folder import load_settings
from training.run.sampled import samples_of_run
from training.run.settings import TrainSettings
from training.run.sliced import PREFIX, SlicedField, sliced_fields

_ROWS_PER_GROUP = 1 << 19


class RestoredModel(NamedTuple):
    """A trained model, with what it predicts."""

    data: str  # where the dataset is
    manifest: Manifest  # with the moments of the training
    manifest_xxh3: str  # of the dataset as it is
    files: tuple[DatasetFile, ...]
    graph: Graph
    model: ShardedModel
    checkpoint: Checkpoint


@dataclass(frozen=True)
class IndependentCtr:
    """The one CTR network by which every model's pCTCVR is compared (ESMM §3.1): a run of its own."""

    run: Path
    restored: RestoredModel
    settings: TrainSettings

    @classmethod
    def of(cls, run: Path, split: str, world: World, data: str) -> "IndependentCtr":
        """Restore the newest checkpoint of `run` for the dataset `data`. Raises InputError if it does not predict p_ctr."""
        with world.agreeing():
            settings = settings_to_predict(load_settings(run, "ctr_run"))
            if "p_ctr" not in settings.model.graph.outputs:
                raise InputError(
                    f"ctr_run={run} predicts {', '.join(settings.model.graph.outputs)} and no p_ctr; give a run of model=ctr."
                )
        return cls(run, restore_model(run, settings, split, world, NEWEST, data), settings)

    def p_ctr_of_steps(self, plan: Plan, split: str, world: World) -> Iterator[Tensor]:
        """Yield its p_ctr of this rank's impressions of each step of `plan`."""
        restored = self.restored
        feed = open_feed(replace(self.settings, data=restored.data), restored.manifest, split, plan, world)
        for rank_batch in rank_batches(feed, 0, range(plan.num_steps), restored.model.exchange, world.device):
            agreeing = rank_batch.start_agreement(world)
            columns = restored.graph.predict(restored.model.predict(rank_batch.batch, rank_batch.ids))
            rank_batch.send_next()
            rank_batch.agreed(agreeing, world)
            yield columns["p_ctr"]


def predict_split(
    restored: RestoredModel,
    settings: TrainSettings,
    split: str,
    truth: Path | None,
    world: World,
    final: Path,
    provenance: Provenance,
    independent: IndependentCtr | None = None,
    slices: Sequence[str] = (),
) -> None:
    """Write `final`/part-<rank>.parquet, one row an impression; all files appear at once, by a rename.

    The `provenance` is in the metadata of each file. With the `independent` CTR network there are p_ctr_independent and its
    product with p_cvr, p_ctcvr_independent (ESMM §3.1); with `slices` a column of indices for each that is a field. A row's
    probabilities do not depend on the number of ranks or threads of a CPU, as long as no table is cut by rows.
    """
    with world.agreeing():
        fields = sliced_fields(slices, restored.manifest)
    with world.agreeing():
        oracle = Oracle(truth) if truth is not None else None
    graph, model = restored.graph, restored.model
    plan = Plan(restored.files, batch_size=settings.plan.batch_size, lanes=settings.plan.lanes, seed=None)
    feed = open_feed(replace(settings, data=restored.data), restored.manifest, split, plan, world)
    staging = final.with_name(f".{final.name}.tmp")
    metadata = {METADATA_KEY: json.dumps(provenance)}

    def tables() -> Iterator[pa.Table]:
        p_ctr_of_steps = independent.p_ctr_of_steps(plan, split, world) if independent else repeat(None)
        steps = rank_batches(feed, 0, range(plan.num_steps), model.exchange, world.device)
        for rank_batch, p_ctr in zip(steps, p_ctr_of_steps, strict=False):
            agreeing = rank_batch.start_agreement(world)
            columns = graph.predict(model.predict(rank_batch.batch, rank_batch.ids))
            rank_batch.send_next()
            rank_batch.agreed(agreeing, world)
            if p_ctr is not None:
                columns |= {"p_ctr_independent": p_ctr}
                columns |= {"p_ctcvr_independent": p_ctr * columns["p_cvr"]} if "p_cvr" in columns else {}
            if rank_batch.num_impressions:
                yield prediction_table(rank_batch.batch, columns, fields)

    with undone_by(lambda: shutil.rmtree(staging, ignore_errors=True)):
        with world.agreeing(), _writing_predictions(staging):
            if world.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
        predicted = tables()
        whole = (oracle.append_to(table) if oracle else table for table in predicted)
        failure = _error_of(
            staging, lambda: write_predictions(staging / f"part-{world.rank:05d}.parquet", whole, metadata)
        )
        for _ in predicted:  # if this rank cannot write: the others wait for it at every step
            pass
        try:
            world.agree(failure)
        except InputError:
            if world.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)  # what is left of it would keep the disk full
            raise
    with world.agreeing(), _writing_predictions(final):
        if world.rank == 0:
            replaced = final.with_name(f".{final.name}.old.tmp")
            shutil.rmtree(replaced, ignore_errors=True)
            if final.exists():
                os.replace(final, replaced)
            os.replace(staging, final)
            shutil.rmtree(replaced, ignore_errors=True)


def restore_model(
    run: Path, settings: TrainSettings, split: str, world: World, which: str = NEWEST, data: str | None = None
) -> RestoredModel:
    """Check that the checkpoint `which` of `run` fits the dataset, build the model and fill it.

    `data` is where the run's dataset is now, or another one, such as that of the next day. Raises InputError for a run
    without a checkpoint, for a dataset with another schema, and where the run's own dataset has been replaced.
    """
    location = data or settings.data
    with world.agreeing():
        manifest = load_manifest(location)
        files = manifest.files_of(split)
        graph = check_settings(for_predictions(settings), manifest, world.device)
    found = checkpoint.find_on_all_ranks(run, world, say, which)
    if found is None:
        raise InputError(f"run={run} has no whole checkpoint yet; train it to the end of an epoch first.")
    xxh3 = manifest_xxh3(manifest)
    is_elsewhere = data is not None and found.manifest_xxh3 != xxh3
    with world.agreeing():
        if is_elsewhere:
            manifest = with_moments_of(run, settings, location, manifest)
        else:
            check_dataset(found, manifest, location)
            check_position(found, train_plan(settings, manifest, samples_of_run(run, settings, manifest)))
    model = build_model(for_predictions(settings), manifest, graph, world)
    with world.agreeing():
        if is_elsewhere:
            restore_elsewhere(found, run, settings, location, manifest, model)
        else:
            checkpoint.restore_to_predict(found, model)
    if is_elsewhere and world.rank == 0:
        say(
            f"data={location} is not the dataset that {run} was trained on: rows follow their raw ids, and ids that are "
            "new are out of vocabulary."
        )
    return RestoredModel(location, manifest, xxh3, files, graph, model, found)


def prediction_table(batch: Batch, predicted: dict[str, Tensor], slices: Sequence[SlicedField] = ()) -> pa.Table:
    """Make one row per impression of `batch`."""
    index = batch.context_of_impression.cpu().numpy()
    group = batch.group_id.cpu().numpy()[index]
    columns = {
        "impression_id": pa.array(batch.impression_id.cpu().numpy()),
        "context_id": pa.array(batch.context_id, pa.string()).take(pa.array(index)),
        "group_id": pa.array(group, mask=group == UNKNOWN_GROUP),
    }
    for name in ("click", "daction", "conversion"):
        if name in batch.labels:
            columns[name] = pa.array(batch.labels[name].cpu().numpy().astype(np.int8))
    for name, probability in predicted.items():
        columns[name] = pa.array(probability.float().cpu().numpy())
    for field in slices:
        columns[PREFIX + field.entry.name] = pa.array(field.indices(batch))
    return pa.table(columns)


def write_predictions(path: Path, tables: Iterator[pa.Table], metadata: dict[bytes, str]) -> None:
    """Stream `tables` into one Parquet file of large row groups; write no file if there is no table."""
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []

    def flush() -> None:
        nonlocal writer, waiting
        if waiting:
            whole = pa.concat_tables(waiting).combine_chunks().replace_schema_metadata(metadata)
            if writer is None:
                # Nearly every probability and id differs: a dictionary of them is larger, and takes half of the time.
                repeated = [name for name in whole.column_names if not name.startswith(("p_", "true_", "impression_"))]
                writer = pq.ParquetWriter(path, whole.schema, compression="zstd", use_dictionary=repeated)
            writer.write_table(whole)
            waiting = []

    try:
        for table in tables:
            waiting.append(table)
            if sum(part.num_rows for part in waiting) >= _ROWS_PER_GROUP:
                flush()
        flush()
    finally:
        if writer:
            writer.close()


def _error_of(folder: Path, action: Callable[[], None]) -> InputError | None:
    """Run `action`, which writes to `folder`, and return the error that a user can fix, if there is one."""
    try:
        with _writing_predictions(folder):
            action()
    except InputError as error:
        return error
    return None


def _writing_predictions(folder: Path) -> AbstractContextManager[None]:
    return writing(f"The predictions in {folder}", "copy the run to another place")
