"""The files of a run's checkpoints: written beside, renamed when complete, verified before they are used.

    RUN/checkpoints/step-00001234/
      rank-00000.safetensors   the rows that rank 0 stored: <table>/<first row>/weight and its optimizer's state
      towers.safetensors       the replicated parameters and Adam's state
      average-00000.safetensors, average-towers.safetensors   the average of the weights, by the same names
      checkpoint.json          position, validations, and size and checksum of each file; written last

`training.checkpoint.restore` says what goes into the tensors.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.atomic_files import sync_directory, write_whole
from pipeline.dataset.named_files import NamedFiles
from pipeline.errors import InputError, reason_of
from training.checkpoint.meta import META_FILE, Checkpoint, SavedFile, meta_text, path_of, read_meta, steps_of
from training.checkpoint.settings import BEST, NEWEST, check_which


def folder(run: Path) -> Path:
    """Return the folder of the checkpoints of `run`."""
    return path_of(run, 0).parent


def checkpoint_paths(run: Path) -> list[Path]:
    """List the checkpoints of `run`, the newest first, whole or damaged. Other names, such as step-00000005.bak, are none."""
    try:
        names = [entry.name for entry in os.scandir(folder(run))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-[0-9]{8,18}", name, re.ASCII)]
    return [path_of(run, count) for count in sorted(steps, reverse=True) if path_of(run, count).name in names]


def find_newest(run: Path, say: Callable[[str], None], renames: bool = False) -> Checkpoint | None:
    """Find the newest complete checkpoint of `run`. Name each damaged one to `say` and skip it.

    `renames` the damaged ones, for a process that has locked the run: left in their place they would count for
    `checkpoint.keep`. Raises InputError where this user may not read one.
    """
    for path in checkpoint_paths(run):
        try:
            return read_checkpoint(path, f"the checkpoint {path.name} is damaged and is not used.")
        except InputError as error:
            if isinstance(error.__cause__, PermissionError):
                raise InputError(f"{path} cannot be read by this user; make it readable. ({error})") from error
            say(str(error))
            if renames:
                say(_renamed(path))
    return None


def find_checkpoint(run: Path, which: str, say: Callable[[str], None], key: str = "checkpoint") -> Checkpoint | None:
    """Find the `newest` complete checkpoint, the one that validation found `best`, or step-N; None without a `newest`.

    Raises InputError, of the setting `key`, where there is no such checkpoint, or that one is damaged.
    """
    if which == NEWEST:
        return find_newest(run, say)
    if which == BEST:
        found = find_newest(run, say)
        if found is None:
            return None
        if found.validation is None:
            raise InputError(
                f"run={run} has no validation up to its newest checkpoint, so no best one; use {key}={NEWEST}."
            )
        if found.validation.best is None:
            raise InputError(
                f"run={run} has no best checkpoint: {found.validation.metric or 'early_stopping.metric'} was undefined in "
                f"every validation; use {key}={NEWEST}."
            )
        path = path_of(run, found.validation.best_steps)
    else:
        path = _path_of_step(run, which, key)
    return read_checkpoint(path, f"{key}={which} is damaged; use {key}={NEWEST}.")


def _path_of_step(run: Path, which: str, key: str) -> Path:
    check_which(which, key)
    path = path_of(run, int(which.removeprefix("step-")))
    present = checkpoint_paths(run)
    if path not in present:
        names = ", ".join(f"step-{steps_of(one)}" for one in present) or "none"
        raise InputError(f"{key}={which}: run={run} has no checkpoint of that step; it has {names}.")
    return path


def _renamed(path: Path) -> str:
    """Rename a damaged checkpoint, so that it is none, and return the message about it."""
    target = path.with_name(f"{path.name}.damaged")
    try:
        number = 1
        while target.exists() or target.is_symlink():
            number += 1
            target = path.with_name(f"{path.name}.damaged-{number}")
        os.rename(path, target)
    except OSError as error:
        raise InputError(f"{path} cannot be renamed ({reason_of(error)}); move it out of the folder.") from error
    return f"{path} is renamed to {target.name}; delete it when you no longer need it."


def read_checkpoint(path: Path, remedy: str) -> Checkpoint:
    """Read the checkpoint at `path` and verify its files.

    Raises InputError, which ends with `remedy`, where one is missing, cut or changed.
    """
    checkpoint, entries = read_meta(path, remedy)
    named = NamedFiles.below(path, str(path / META_FILE), remedy)
    for name, entry in entries.items():  # of all files first: it takes no time
        named.check_size(name, entry.bytes)
    for name, entry in entries.items():
        named.check_content(name, entry.xxh3)
    return checkpoint


def prepare_folder(parent: Path) -> None:
    """Make the folder of the checkpoints, and remove the unfinished ones that a killed run left in it."""
    parent.mkdir(parents=True, exist_ok=True)
    for unfinished in parent.glob(".step-*.tmp"):
        _remove(unfinished)


def commit(staging: Path, checkpoint: Checkpoint, world_size: int, entries: Mapping[str, list[int]], keep: int) -> None:
    """Rename `staging` to the complete `checkpoint`, and delete what is older than the `keep` newest.

    `entries` has what `write_safetensors` returned for each file.
    """
    final = checkpoint.path
    files = {name: SavedFile(row[0], f"{(row[1] << 32) + row[2]:016x}") for name, row in entries.items()}
    write_whole(staging / META_FILE, meta_text(checkpoint, world_size, files))
    if final.exists():  # damaged, or saved before its validation was
        os.replace(final, replaced := final.with_name(f".{final.name}.old.tmp"))
        os.replace(staging, final)
        _remove(replaced)
    else:
        os.replace(staging, final)
    sync_directory(final.parent)
    _delete_old(final.parent.parent, keep)


def _delete_old(run: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and those that they name as the best."""
    present = checkpoint_paths(run)
    wanted = set(present[:keep])
    for path in present[:keep]:
        with contextlib.suppress(InputError):  # a damaged one names nothing
            validation = read_meta(path, "")[0].validation
            wanted |= {path_of(run, validation.best_steps)} if validation else set()
    for path in present:
        if path not in wanted:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
