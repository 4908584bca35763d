"""The tensors of a checkpoint: all that a run needs to resume. Nothing in it is a pickle.

A table's rows are found by their row numbers, so any number of ranks restores what any other number saved. The masks of
dropout and the order of the data are functions of the position, so there is no random state to keep.
`training.checkpoint.files` has the format and the atomic commit; `training.checkpoint.save` writes beside training.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import InputError
from training.checkpoint.files import NEWEST, find_checkpoint, find_newest
from training.checkpoint.meta import TOWERS_FILE, Checkpoint, path_of, read_meta, steps_of
from training.distributed.sharded_model import ShardedModel
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

    Raises InputError where a table or a tower has another shape than the saved one.
    """
    try:
        readers = [
            safe_open(checkpoint.path / name, framework="pt") for name in checkpoint.files if name != TOWERS_FILE
        ]
        pieces: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        for reader in readers:
            for key in reader.keys():  # noqa: SIM118
                table, first_row, part = key.split("/")
                pieces.setdefault((table, part), []).append((int(first_row), reader.get_slice(key)))
        for shard in model.shards:
            for part, rows in {"weight": shard.weight, **shard.optimizer}.items():
                _fill(rows, shard.first_row, pieces.get((shard.table, part), []), f"{shard.table}/{part}", checkpoint)
        with safe_open(checkpoint.path / TOWERS_FILE, framework="pt") as reader:
            load_towers(model, {key: reader.get_tensor(key) for key in reader.keys()}, checkpoint)  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"{checkpoint.path} cannot be read ({error}); delete it to resume from the one before."
        ) from error


def rank_tensors(model: ShardedModel) -> dict[str, Tensor]:
    """List what this rank saves of the tables: <table>/<first row>/<part> → rows."""
    return {
        f"{shard.table}/{shard.first_row}/{part}": rows
        for shard in model.shards
        if shard.saved
        for part, rows in {"weight": shard.weight, **shard.optimizer}.items()
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


def load_towers(model: ShardedModel, saved: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Fill the towers and their optimizer from `saved`. Raises InputError where a shape differs."""
    for name, parameter in model.towers.named_parameters():
        _check_shape(name, saved.get(name), parameter, checkpoint)
        with torch.no_grad():
            parameter.copy_(saved[name])
        prefix = f"adam/{name}/"
        moments = {key.removeprefix(prefix): value.clone() for key, value in saved.items() if key.startswith(prefix)}
        if moments:
            model.num_updates = int(moments["step"].item())
            model.tower_optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}


def _fill(target: Tensor, first_row: int, pieces: list[tuple[int, Any]], name: str, checkpoint: Checkpoint) -> None:
    """Copy rows [first_row, first_row + len(target)) from the saved `pieces` (first row, rows) that cover them."""
    last_row, filled = first_row + len(target), 0
    for start, rows in pieces:
        begin, end = max(first_row, start), min(last_row, start + rows.get_shape()[0])
        if begin < end:
            part = rows[begin - start : end - start]
            _check_shape(name, part, target[begin - first_row : end - first_row], checkpoint)
            target[begin - first_row : end - first_row].copy_(part)
            filled += end - begin
    saved_rows = sum(rows.get_shape()[0] for _, rows in pieces)
    if filled != len(target) or (first_row == 0 and saved_rows < len(target)):
        raise InputError(
            f"{checkpoint.path} has {saved_rows} rows of {name} and the model {last_row}; "
            "the run was trained on another dataset or with other settings, so start a new one (out=…)."
        )


def _check_shape(name: str, saved: Tensor | None, wanted: Tensor, checkpoint: Checkpoint) -> None:
    if saved is None or saved.shape != wanted.shape:
        found = "is not there" if saved is None else f"is {list(saved.shape)}"
        raise InputError(
            f"{checkpoint.path}: {name} {found} and the model's is {list(wanted.shape)}; "
            "the run was trained with other settings, so start a new one (out=…)."
        )
