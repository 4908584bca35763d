"""The tensors of a checkpoint: all that a run needs to resume. Nothing in it is a pickle.

A table's rows are found by their row numbers, so any number of ranks restores what any other number saved. The masks of
dropout and the order of the data are functions of the position, so there is no random state to keep.
`training.checkpoint.files` has the format and the atomic commit; `training.checkpoint.save` writes beside training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import InputError
from training.checkpoint.files import find_checkpoint, find_newest
from training.checkpoint.meta import Checkpoint, path_of, read_meta, steps_of
from training.checkpoint.settings import NEWEST
from training.checkpoint.tensors import SavedTensors, prediction_tensors
from training.distributed.sharded_model import Shard, ShardedModel
from training.distributed.weight_average import WeightAverage
from training.distributed.world import World


def find_on_all_ranks(
    run: Path,
    world: World,
    say: Callable[[str], None],
    which: str = NEWEST,
    *,
    key: str = "checkpoint",
    renames: bool = False,
) -> Checkpoint | None:
    """Find the complete checkpoint `which` of `run`: rank 0 picks and verifies it, all ranks return it.

    `key` is the setting that chose it, and `renames` as in `find_newest`.
    """
    found, error = None, None
    if world.rank == 0:
        try:
            found = find_newest(run, say, renames=True) if renames else find_checkpoint(run, which, say, key)
        except InputError as failure:
            error = failure
    world.agree(error)
    total_steps = world.broadcast(steps_of(found.path) if found else -1)
    if total_steps < 0:
        return None
    with world.agreeing():
        return found or read_meta(path_of(run, total_steps), "give every rank the same files.")[0]


def restore(checkpoint: Checkpoint, model: ShardedModel) -> None:
    """Fill `model` from `checkpoint`, whatever number of ranks wrote it.

    Raises InputError, before it changes the model, where a table or a tower has another name, type or shape than the
    saved one; and, while it reads, for a number that is not finite.
    """
    _fill(SavedTensors(checkpoint), checkpoint, model, list(model.shards))


def restore_to_predict(checkpoint: Checkpoint, model: ShardedModel) -> None:
    """Fill `model` with the weights that predict: the average of `checkpoint`, or its last weights where it has none.

    The optimizers' states of an average are none, so train with `restore`. Raises InputError as `restore` does.
    """
    _fill(prediction_tensors(checkpoint), checkpoint, model, _without_optimizer(model.shards))


def restore_average(checkpoint: Checkpoint, average: WeightAverage) -> None:
    """Go on with the average of `checkpoint`; InputError as `restore` raises it. Where it has none, a new one begins."""
    if not average.goes_on_from(checkpoint.average):
        return
    saved = SavedTensors(checkpoint, average=True)
    _check_names(saved, list(average.towers))
    _check_rows(saved, checkpoint, average.shards)
    for name, value in average.towers.items():
        value.copy_(saved.tower(name, value.shape, value.dtype))
    _fill_rows(saved, average.shards)


def _fill(saved: SavedTensors, checkpoint: Checkpoint, model: ShardedModel, shards: Sequence[Shard]) -> None:
    parameters = [name for name, _ in model.towers.named_parameters()]
    _check_names(saved, parameters)
    _check_rows(saved, checkpoint, shards)
    load_towers(model, saved, {name: name for name in parameters})
    _fill_rows(saved, shards)


def _without_optimizer(shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards without their optimizers' state."""
    return [replace(shard, optimizer={}) for shard in shards]


def _check_names(saved: SavedTensors, parameters: Sequence[str]) -> None:
    strange = sorted(name for name in saved.tower_names if _parameter_of(name) not in parameters)
    if strange:
        raise saved.damage(f"{saved.towers_file} has the tensor {strange[0]!r}, and the model has no such parameter")


def _check_rows(saved: SavedTensors, checkpoint: Checkpoint, shards: Sequence[Shard]) -> None:
    for shard in shards:
        for part, rows in _saved_parts(shard).items():
            saved.check_like(shard.table, part, rows)
            last_row, num_saved = shard.first_row + len(rows), saved.num_rows(shard.table, part)
            if num_saved < last_row:
                raise InputError(
                    f"{checkpoint.path} has {num_saved} rows of {shard.table}/{part} and the model {last_row}; "
                    "the run was trained on another dataset or with other settings, so start a new one (out=…)."
                )


def _fill_rows(saved: SavedTensors, shards: Sequence[Shard]) -> None:
    for shard in shards:
        for part, rows in _saved_parts(shard).items():
            for start, block in saved.blocks(shard.table, part, shard.first_row, shard.first_row + len(rows)):
                rows[start - shard.first_row : start - shard.first_row + len(block)].copy_(block)


def rank_tensors(model: ShardedModel) -> dict[str, Tensor]:
    """List what this rank saves of the tables: <table>/<first row>/<part> → rows."""
    return tensors_of(model.shards)


def tensors_of(shards: Sequence[Shard]) -> dict[str, Tensor]:
    """List what this rank saves of `shards`: <table>/<first row>/<part> → rows."""
    return {
        f"{shard.table}/{shard.first_row}/{part}": rows
        for shard in shards
        if shard.saved
        for part, rows in _saved_parts(shard).items()
    }


def tower_tensors(model: ShardedModel) -> dict[str, Tensor]:
    """List the replicated state by name: the towers' parameters, and Adam's moments and step counts."""
    tensors = {}
    for name, parameter in model.towers.named_parameters():
        tensors[name] = parameter.detach()
        # Sorted, for a restored state has another order than a fresh one, and equal states are to give equal files.
        for key, value in sorted(model.tower_optimizer.state.get(parameter, {}).items()):
            tensors[f"adam/{name}/{key}"] = value
    return tensors


def load_towers(model: ShardedModel, saved: SavedTensors, name_of: Mapping[str, str]) -> None:
    """Fill the parameters of the towers that `name_of` maps to their saved names, and their optimizer's state.

    Raises InputError, before it changes one, where a shape or type differs, or the state is not possible.
    """
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    parameters = dict(model.towers.named_parameters())
    for name, saved_name in name_of.items():
        shape, dtype = parameters[name].shape, parameters[name].dtype
        found[name] = saved.tower(saved_name, shape, dtype), _adam_state(saved, saved_name, shape, dtype)
    for name, (value, state) in found.items():
        with torch.no_grad():
            parameters[name].copy_(value)
        if state:
            placed = {key: moment.to(parameters[name].device) for key, moment in state.items()}
            model.tower_optimizer.state[parameters[name]] = placed
    # The largest: a head that began later, in a run with init_from, has fewer.
    model.num_updates = max((int(state["step"].item()) for _, state in found.values() if state), default=0)


def _adam_state(saved: SavedTensors, name: str, shape: torch.Size, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return Adam's moments and step count of a saved parameter; nothing where it had taken no step."""
    prefix = f"adam/{name}/"
    present = {key.removeprefix(prefix) for key in saved.tower_names if key.startswith(prefix)}
    if not present:
        return {}
    if present != {"step", "exp_avg", "exp_avg_sq"}:
        raise saved.damage(f"Adam's state of {name} has {', '.join(sorted(present))} and not step, exp_avg, exp_avg_sq")
    state = {key: saved.tower(prefix + key, shape, dtype) for key in ("exp_avg", "exp_avg_sq")}
    step = saved.tower(f"{prefix}step", torch.Size(()), torch.float32)
    if step < 1 or step != step.round() or (state["exp_avg_sq"] < 0).any():
        raise saved.damage(f"Adam's state of {name} is not possible: {step.item():g} steps, or a negative square")
    return state | {"step": step}


def _parameter_of(name: str) -> str:
    return name.removeprefix("adam/").rpartition("/")[0] if name.startswith("adam/") else name


def _saved_parts(shard: Shard) -> dict[str, Tensor]:
    """Return what is saved of the rows of a shard."""
    return {"weight": shard.weight, **shard.optimizer}
