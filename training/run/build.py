"""Build the parts of a run, for training and evaluation: checks, feed, model, and initial values from another run."""

from pathlib import Path

import torch
import xxhash

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest, field_differences, load_manifest
from pipeline.errors import InputError
from training.checkpoint import restore as checkpoint
from training.checkpoint.carry_over import carry_over
from training.checkpoint.meta import Checkpoint, steps_of
from training.distributed.shard_model import shard_model
from training.distributed.sharded_model import ShardedModel
from training.distributed.world import World
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.model.bodies import check_body
from training.model.entire_space import EntireSpaceModel
from training.model.graph import Graph
from training.model.losses import check_losses
from training.run.journal import say
from training.run.run_folder import load_settings
from training.run.settings import TrainSettings


def check_settings(settings: TrainSettings, manifest: Manifest, device: torch.device) -> Graph:
    """Check the settings against the dataset and the device, and return the behaviour graph; InputError where they do not fit."""
    settings.optimizer.check_device(device.type)
    settings.embedding.check_fields(manifest.fields)
    settings.sharding.check_fields(manifest.fields)
    graph = Graph(settings.model.graph, list(manifest.labels))
    check_losses(graph)
    check_body(settings.model.body, graph)
    return graph


def open_feed(settings: TrainSettings, manifest: Manifest, split: str, plan: Plan, world: World) -> Feed:
    """Open this rank's batches of `split`."""
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
    )


def build_model(settings: TrainSettings, manifest: Manifest, graph: Graph, world: World) -> ShardedModel:
    """Build the model at its initial values, sharded over the ranks."""
    model = EntireSpaceModel(manifest, graph, settings.embedding, settings.model, settings.seed, settings.precision)
    tables = manifest.fields_of(stored=INDEX)
    return shard_model(model, tables, settings.embedding, settings.optimizer, settings.sharding, world)


def manifest_xxh3(manifest: Manifest) -> str:
    """Hash the manifest, which identifies the dataset."""
    return xxhash.xxh3_64_hexdigest(manifest.to_json().encode())


def check_dataset(found: Checkpoint, manifest: Manifest, data: str) -> None:
    """Raise InputError unless `manifest` is that of the dataset on which `found` was trained."""
    if found.manifest_xxh3 != manifest_xxh3(manifest):
        raise InputError(
            f"data={data} is not the dataset that {found.path.parent.parent} was trained on: its manifest differs, so "
            "indices may mean other ids. Give that dataset, or train a new run (out=…)."
        )


def check_position(found: Checkpoint, plan: Plan) -> None:
    """Raise InputError unless the position of `found` is one of `plan`, whose run it is of."""
    epoch, step, total_steps = found.position.epoch, found.position.step, steps_of(found.path)
    if step >= plan.num_steps or epoch * plan.num_steps + step != total_steps:
        raise InputError(
            f"{found.path} says step {step} of epoch {epoch}, and after {total_steps} steps of {plan.num_steps} an epoch "
            f"that is step {total_steps % plan.num_steps} of epoch {total_steps // plan.num_steps}; it has been changed, so "
            "move it out of the folder to resume from the one before."
        )


def continue_from(run: Path, settings: TrainSettings, manifest: Manifest, model: ShardedModel, world: World) -> None:
    """Fill `model` from the newest checkpoint of `run`; rows follow their raw ids.

    Raises InputError, on every rank, if the two runs differ in more than their vocabularies.
    """
    with world.agreeing():
        before = load_settings(run, "init_from")
        old = load_manifest(before.data)
    found = checkpoint.find_on_all_ranks(run, world, say)
    with world.agreeing():
        if found is None:
            raise InputError(f"init_from={run} has no whole checkpoint; train it to the end of an epoch first.")
        check_dataset(found, old, before.data)
        check_same_schema(before, old, settings, manifest)
        towers = carry_over(found.path, found.files, before.data, old, settings.data, manifest, model)
        checkpoint.load_towers(model, towers, found)


_SAME = (
    "scope",
    "arity",
    "weighted",
    "kind",
    "hash_buckets",
    "parameters",
)  # of a field, for its rows and inputs to mean the same


def check_same_schema(before: TrainSettings, old: Manifest, now: TrainSettings, new: Manifest) -> None:
    """Raise InputError listing every difference that keeps the model of `before` from being trained on as that of `now`."""
    found = field_differences(old.fields, new.fields, _SAME)
    both = [entry.name for entry in new.fields if entry.name in {entry.name for entry in old.fields}]
    pairs: list[tuple[str, object, object]] = [
        (f"embedding.dim of {name}", before.embedding.dim_of(name), now.embedding.dim_of(name)) for name in both
    ]
    pairs += [
        ("model.towers.hidden", list(before.model.towers.hidden), list(now.model.towers.hidden)),
        ("model.body", before.model.body, now.model.body),
        ("model.graph.edges", list(before.model.graph.edges), list(now.model.graph.edges)),
        ("model.graph.heads", list(before.model.graph.heads), list(now.model.graph.heads)),
        ("model.graph.losses", list(before.model.graph.losses), list(now.model.graph.losses)),
        ("optimizer.embeddings.name", before.optimizer.embeddings.name, now.optimizer.embeddings.name),
    ]
    found += [f"{key} was {was} and is {is_now}" for key, was, is_now in pairs if was != is_now]
    if found:
        raise InputError(
            f"init_from={now.init_from} cannot go on with data={now.data}: {'; '.join(found)}; "
            "give a dataset and settings of the same shape, or train from the start (init_from=null)."
        )
