"""Build the parts of a run, for training and evaluation: checks, feed, model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import xxhash

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from training.checkpoint.meta import Checkpoint, steps_of
from training.distributed.devices import set_precision, to_predict
from training.distributed.settings import OptimizerSettings
from training.distributed.shard_model import shard_model
from training.distributed.sharded_model import ShardedModel
from training.distributed.world import World
from training.feed.columns import IMPORTANCE
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.feed.sampling import Sampler
from training.feed.settings import WEIGH
from training.model.bodies import NO_BODY, check_body
from training.model.compiled import CannotCompile, LossSums, compile_training
from training.model.dropout_masks import has_triton
from training.model.entire_space import EntireSpaceModel
from training.model.graph import Graph
from training.model.losses import check_losses, loss_sums
from training.model.own_tables import tables_of
from training.model.settings import ModelSettings
from training.run.journal import say
from training.run.settings import TrainSettings


def check_settings(settings: TrainSettings, manifest: Manifest, device: torch.device) -> Graph:
    """Check the settings against the dataset and the device, and return the behaviour graph; InputError where they do not fit."""
    settings.optimizer.check_device(device.type)
    settings.embedding.check_fields(manifest.fields)
    settings.sharding.check_fields(manifest.fields)
    graph = Graph(settings.model.graph, list(manifest.labels))
    check_losses(graph)
    weighted = [loss.name for loss in graph.losses if loss.kind == IMPORTANCE]
    if (settings.model.sampling.by_p_ctr == WEIGH) != bool(weighted):
        raise InputError(
            f"model.sampling.by_p_ctr={settings.model.sampling.by_p_ctr} and losses of kind {IMPORTANCE} ({len(weighted)}) do not "
            "go together; by_p_ctr=weigh makes the weights that such a loss needs."
        )
    check_body(settings.model.body, graph)
    return graph


def train_plan(settings: TrainSettings, manifest: Manifest, expected: Sequence[int] | None) -> Plan:
    """Plan the batches of the train split; `expected` samples of each row group where they are what is counted."""
    plan, unit = settings.plan, settings.model.train_on
    files = manifest.files_of("train")
    return Plan(
        files,
        batch_size=plan.batch_size,
        lanes=plan.lanes,
        seed=plan.seed,
        unit=unit,
        expected=expected,
        share=plan.share,
    )


def unit_without_sampling(model: ModelSettings) -> str:
    """Return what the losses of a split that is not sampled are a mean over: impressions, or clicks."""
    if model.train_on != "samples":
        return model.train_on
    return "impressions" if model.sampling.unclicked > 0 else "clicks"


def open_feed(
    settings: TrainSettings, manifest: Manifest, split: str, plan: Plan, world: World, sampler: Sampler | None = None
) -> Feed:
    """Open this rank's batches of `split`; `sampler` for a model that draws samples or weighs impressions."""
    return Feed(
        settings.data,
        manifest,
        split,
        plan,
        rank=world.rank,
        world_size=world.size,
        pooling=settings.embedding.pooling_of(manifest.fields),
        settings=settings.feed,
        pin=world.device.type == "cuda",
        num_cores=world.num_cores,
        sampler=sampler,
        num_copies=settings.model.num_copies(len(Graph(settings.model.graph, list(manifest.labels)).heads)),
    )


def build_model(settings: TrainSettings, manifest: Manifest, graph: Graph, world: World) -> ShardedModel:
    """Build the model at its initial values, sharded over the ranks."""
    set_precision(settings.precision, world.device)
    model = EntireSpaceModel(manifest, graph, settings.embedding, settings.model, settings.seed, settings.precision)
    tables = tables_of(manifest.fields_of(stored=INDEX), model.num_copies)
    batch_size = settings.plan.batch_size
    return shard_model(model, tables, settings.embedding, settings.optimizer, settings.sharding, batch_size, world)


def settings_to_predict(settings: TrainSettings, device: str | None = None) -> TrainSettings:
    """Return the settings with which a run predicts, on `device` if one is given, whatever device it was trained on.

    What trained in tf32 predicts in fp32.
    """
    precision = "fp32" if settings.precision == "tf32" else settings.precision
    return replace(settings, world=to_predict(settings.world, device), precision=precision)


def for_predictions(settings: TrainSettings) -> TrainSettings:
    """Return the settings of a model that predicts alone: a CPU may have no kernel for the optimizer of its tables."""
    return replace(settings, optimizer=OptimizerSettings())


def kind_of_towers(wanted: str, device: str, body: str, can_compile: bool) -> str:
    """Return each, stacked or compiled for `world.towers=wanted`."""
    if wanted != "auto":
        return wanted
    if device == "cpu" or body != NO_BODY:
        return "each"
    return "compiled" if can_compile else "stacked"


def train_towers(model: ShardedModel, graph: Graph, settings: TrainSettings, world: World) -> LossSums:
    """Choose how training multiplies the towers (`world.towers`), and return the function that sums the losses.

    Raises InputError, on every rank, where the settings ask for what cannot be done here.
    """
    wanted, kind = settings.world.towers, settings.model.body["kind"]
    how = kind_of_towers(wanted, world.device.type, kind, has_triton())
    if how == "each":
        return partial(loss_sums, graph)
    with world.agreeing():
        if kind != NO_BODY:
            raise InputError(
                f"world.towers={wanted} is for towers without a body, and this model has {kind}; use each."
            )
        network, widths = model.towers.stacked(), model.network.widths
        if how == "compiled":
            try:
                compiled, sums = compile_training(network, graph, widths, model.network.dtype, world.device)
            except CannotCompile as error:
                if wanted != "auto":
                    raise InputError(
                        f"world.towers=compiled: torch cannot compile here ({error}); use stacked."
                    ) from error
                say(f"torch cannot compile here ({error}); the towers are trained without (world.towers=stacked).")
            else:
                model.towers.train_stacked(compiled)
                return sums
        model.towers.train_stacked(network)
    return partial(loss_sums, graph)


def manifest_xxh3(manifest: Manifest) -> str:
    """Hash the manifest, which identifies the dataset."""
    return xxhash.xxh3_64_hexdigest(manifest.to_json().encode())


def check_position(found: Checkpoint, plan: Plan) -> None:
    """Raise InputError unless the position of `found` is one of `plan`, whose run it is of."""
    epoch, step, total_steps = found.position.epoch, found.position.step, steps_of(found.path)
    if step >= plan.num_steps or epoch * plan.num_steps + step != total_steps:
        raise InputError(
            f"{found.path} says step {step} of epoch {epoch}, and after {total_steps} steps of {plan.num_steps} an epoch "
            f"that is step {total_steps % plan.num_steps} of epoch {total_steps // plan.num_steps}; it has been changed, so "
            "move it out of the folder to resume from the one before."
        )
