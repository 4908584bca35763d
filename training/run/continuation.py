"""The model that another run has trained, in this one (`init_from`), or on another dataset (`jobs.evaluate data=…`)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pipeline.dataset.manifest import OUT_OF_VOCABULARY, Manifest, field_differences
from pipeline.errors import InputError
from training.checkpoint.carry_over import carry_over
from training.checkpoint.meta import Checkpoint
from training.checkpoint.restore import find_on_all_ranks, load_towers
from training.checkpoint.tensors import SavedTensors, prediction_tensors
from training.distributed.sharded_model import ShardedModel
from training.distributed.world import World
from training.model.bodies import NO_BODY
from training.model.graph import Graph, Query
from training.run.dataset_copy import check_dataset, dataset_of
from training.run.journal import say
from training.run.run_folder import load_settings
from training.run.settings import TrainSettings


def continue_from(
    run: Path, settings: TrainSettings, manifest: Manifest, graph: Graph, model: ShardedModel, world: World
) -> None:
    """Fill `model` from the last weights of a checkpoint of `run`; rows follow their raw ids, towers the names of their heads.

    They, and not the average, belong to the optimizers' states; an average of the new run begins at its first step.

    What a head that only one of the runs has means for it is said. Raises InputError, on every rank, if the two runs
    differ in more than their vocabularies and heads.
    """
    with world.agreeing():
        before = load_settings(run, "init_from")
        location, old = dataset_of(run, before.data)
    found = find_on_all_ranks(run, world, say, settings.init_from_checkpoint, key="init_from_checkpoint")
    with world.agreeing():
        if found is None:
            raise InputError(f"init_from={run} has no whole checkpoint; train it to the end of an epoch first.")
        check_dataset(found, old, location)
        check_same_schema(f"init_from={run}", before, old, settings, manifest)
        heads = Graph(before.model.graph, list(old.labels)).heads
        saved = SavedTensors(found)
        names = saved_names(model.towers.named_parameters(), graph.heads, heads, saved)
        carry_over(saved, location, old, settings.data, manifest, model)
        load_towers(model, saved, names)
    if world.rank == 0:
        for line in head_differences(heads, graph.heads):
            say(f"init_from={run}: {line}")


def restore_elsewhere(
    found: Checkpoint, run: Path, settings: TrainSettings, data: str, manifest: Manifest, model: ShardedModel
) -> None:
    """Fill `model`, built for the dataset `data`, with the weights of `found` that predict.

    An id that `run` did not know reads the row out of vocabulary.
    """
    location, old = dataset_of(run, settings.data)
    check_dataset(found, old, location)
    saved = prediction_tensors(found)
    carry_over(saved, location, old, data, manifest, model, OUT_OF_VOCABULARY)
    load_towers(model, saved, {name: name for name, _ in model.towers.named_parameters()})


def with_moments_of(run: Path, settings: TrainSettings, data: str, manifest: Manifest) -> Manifest:
    """Return `manifest` with the means and deviations of the dataset of `run`, which its towers were trained with.

    Raises InputError if the model does not fit `manifest`.
    """
    _, old = dataset_of(run, settings.data)
    check_same_schema(f"run={run}", settings, old, replace(settings, data=data), manifest)
    before = {entry.name: entry for entry in old.fields}
    moments = [(entry, before[entry.name]) for entry in manifest.fields]
    return replace(manifest, fields=tuple(replace(now, mean=was.mean, std=was.std) for now, was in moments))


def saved_names(
    parameters: Iterable[tuple[str, Tensor]], heads: Sequence[Query], before: Sequence[Query], saved: SavedTensors
) -> dict[str, str]:
    """Map the parameters of the towers of `heads` to their names in a run with the heads `before`; no new ones."""
    number_of = {head: number for number, head in enumerate(before)}
    names = {}
    for name, parameter in parameters:
        number, _, rest = name.partition(".")
        if number == "body":  # where the heads differ, some of it is of one head, or as wide as all heads together
            if tuple(heads) == tuple(before) or saved.has_tower(name, parameter.shape):
                names[name] = name
        elif heads[int(number)] in number_of:
            names[name] = f"{number_of[heads[int(number)]]}.{rest}"
    return names


def head_differences(before: Sequence[Query], now: Sequence[Query]) -> list[str]:
    """Describe what happens to the towers of heads that one side lacks."""
    fresh, gone = ([f"`{head}`" for head in one if head not in other] for one, other in ((now, before), (before, now)))
    lines = [f"the run has no tower of {', '.join(fresh)}, which starts at its initial values"] if fresh else []
    return lines + ([f"its tower of {', '.join(gone)} is not used"] if gone else [])


#: Of a field, for its rows and inputs to mean the same.
_SAME = ("scope", "arity", "weighted", "kind", "hash_buckets", "parameters")


def check_same_schema(what: str, before: TrainSettings, old: Manifest, now: TrainSettings, new: Manifest) -> None:
    """Raise InputError listing every difference that keeps the model of `before` from being used as that of `now`."""
    found = field_differences(old.fields, new.fields, _SAME)
    both = [entry.name for entry in new.fields if entry.name in {entry.name for entry in old.fields}]
    pairs: list[tuple[str, object, object]] = [
        (f"embedding.dim of {name}", before.embedding.dim_of(name), now.embedding.dim_of(name)) for name in both
    ]
    pairs += [
        ("model.towers.hidden", list(before.model.towers.hidden), list(now.model.towers.hidden)),
        ("model.body", before.model.body, now.model.body),
        ("model.own_tables", before.model.own_tables, now.model.own_tables),
        ("optimizer.embeddings.name", before.optimizer.embeddings.name, now.optimizer.embeddings.name),
    ]
    heads, heads_before = (Graph(one.model.graph, list(data.labels)).heads for one, data in ((now, new), (before, old)))
    common = [head for head in heads if head in heads_before]
    for head in common:
        for node in (head.node, head.given.node, *head.given.excluded):
            was, is_now = (one.model.graph.labels.get(node, node) for one in (before, now))
            pairs.append((f"model.graph.labels.{node}", was, is_now))
    if now.model.body["kind"] != NO_BODY:  # which numbers its gates
        for head in common:
            pairs.append((f"the number of the head `{head}`", heads_before.index(head), heads.index(head)))
    found += dict.fromkeys(f"{key} was {was} and is {is_now}" for key, was, is_now in pairs if was != is_now)
    if found:
        raise InputError(
            f"{what} cannot go on with data={now.data}: {'; '.join(found)}; "
            "give a dataset and settings of the same shape, or train from the start (init_from=null)."
        )
