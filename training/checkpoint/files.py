"""The files of a run's checkpoints: written beside, renamed when complete, verified before they are used.

    RUN/checkpoints/step-00001234/
      rank-00000.safetensors   the rows that rank 0 stored: <table>/<first row>/weight and its optimizer's state
      towers.safetensors       the replicated parameters and Adam's state
      checkpoint.json          position, validations, and size and checksum of each file; written last

`training.checkpoint.restore` says what goes into the tensors.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from pipeline.atomic_files import sync_directory, write_whole, xxh3_of
from pipeline.errors import InputError

FORMAT_VERSION = 1
CHECKPOINTS = "checkpoints"
META_FILE = "checkpoint.json"
TOWERS_FILE = "towers.safetensors"
WHICH = ("newest", "best")
_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Position:
    """The position of a run: the next step to take is `step` of `epoch`."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class ValidationState:
    """The validations of a run so far: the latest one, the best one, and those since the best."""

    total_steps: int  # done at the latest validation
    best: float | None  # the best value of early_stopping.metric; None while it is undefined
    best_steps: int  # done when it was found; the checkpoint of that step is kept
    num_worse: int  # validations since


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    position: Position
    manifest_xxh3: str
    files: tuple[str, ...]
    validation: ValidationState | None = None


def folder(run: Path) -> Path:
    """Return the folder of the checkpoints of `run`."""
    return run / CHECKPOINTS


def path_of(run: Path, total_steps: int) -> Path:
    """Return the folder of the checkpoint after `total_steps` steps."""
    return folder(run) / f"step-{total_steps:08d}"


def steps_of(path: Path) -> int:
    """Return the number of steps after which the checkpoint at `path` was saved."""
    return int(path.name.removeprefix("step-"))


def find_newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Find the newest complete checkpoint of `run`. Name each damaged one to `say` and skip it."""
    if not folder(run).is_dir():
        return None
    for path in sorted(folder(run).glob("step-*"), reverse=True):
        try:
            return _read_verified(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{path} is damaged ({error}) and is skipped.")
    return None


def find_checkpoint(run: Path, which: str, say: Callable[[str], None]) -> Checkpoint | None:
    """Find the `newest` complete checkpoint, or the one that validation found `best`; None where there is none at all.

    Raises InputError where the run has not been validated, or its best checkpoint is damaged.
    """
    if which not in WHICH:
        raise InputError(f"checkpoint={which} is not one of {', '.join(WHICH)}.")
    found = find_newest(run, say)
    if which == "newest" or found is None:
        return found
    if found.validation is None:
        raise InputError(
            f"run={run} has no validation up to its newest checkpoint, so no best one; use checkpoint=newest."
        )
    path = path_of(run, found.validation.best_steps)
    try:
        return _read_verified(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}, the best of run={run}, is damaged ({error}); use checkpoint=newest.") from error


def read_meta(path: Path) -> Checkpoint:
    """Read the checkpoint.json at `path` and check no file. Raises OSError, ValueError, KeyError or TypeError."""
    raw = json.loads((path / META_FILE).read_text())
    if raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format_version={raw['format_version']}, and this release reads {FORMAT_VERSION}")
    validation = ValidationState(**raw["judged"]) if raw["judged"] else None
    return Checkpoint(path, Position(**raw["position"]), raw["manifest_xxh3"], tuple(sorted(raw["files"])), validation)


def _read_verified(path: Path) -> Checkpoint:
    """Read and verify the checkpoint at `path`. Raises ValueError or OSError where a file is missing, cut or changed."""
    checkpoint = read_meta(path)
    for name, expected in json.loads((path / META_FILE).read_text())["files"].items():
        if Path(name).name != name:
            raise ValueError(f"it names {name!r}, which is not a file of its own folder")
        if (path / name).stat().st_size != expected["bytes"]:
            raise ValueError(f"{name} has another size than {META_FILE} says")
        with (path / name).open("rb") as stream:
            if xxh3_of(stream) != expected["xxh3"]:
                raise ValueError(f"{name} has another checksum than {META_FILE} says")
    return checkpoint


def prepare_folder(parent: Path) -> None:
    """Make the folder of the checkpoints, and remove the unfinished ones that a killed run left in it."""
    parent.mkdir(parents=True, exist_ok=True)
    for unfinished in parent.glob(".step-*.tmp"):
        shutil.rmtree(unfinished)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    """Write a safetensors file straight from the tensors' memory, down to the disk (fsync).

    Returns its size and the halves of its xxh3. The library's own writer copies every table once, and refuses tables that
    share a buffer, as FBGEMM's do.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_64()
    with path.open("wb") as stream:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            stream.write(part)
        for tensor in tensors.values():
            memory = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            digest.update(memory)
            stream.write(memory)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    return [size, *divmod(digest.intdigest(), 1 << 32)]


def commit(staging: Path, checkpoint: Checkpoint, world_size: int, entries: Mapping[str, list[int]], keep: int) -> None:
    """Rename `staging` to the complete `checkpoint`, and delete what is older than the `keep` newest.

    `entries` has what `write_safetensors` returned for each file.
    """
    final = checkpoint.path
    files = {name: {"bytes": row[0], "xxh3": f"{(row[1] << 32) + row[2]:016x}"} for name, row in entries.items()}
    meta = {
        "format_version": FORMAT_VERSION,
        "position": asdict(checkpoint.position),
        "manifest_xxh3": checkpoint.manifest_xxh3,
        "judged": asdict(checkpoint.validation) if checkpoint.validation else None,
        "world_size": world_size,
        "files": files,
    }
    write_whole(staging / META_FILE, json.dumps(meta, indent=1, sort_keys=True))
    if final.exists():  # damaged, or saved before its validation was
        os.replace(final, replaced := final.with_name(f".{final.name}.old.tmp"))
        os.replace(staging, final)
        shutil.rmtree(replaced)
    else:
        os.replace(staging, final)
    sync_directory(final.parent)
    _delete_old(final.parent, keep)


def _delete_old(parent: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and those that they name as the best."""
    kept = sorted(parent.glob("step-*"), reverse=True)[:keep]
    wanted = {path.name for path in kept}
    for path in kept:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one names nothing
            validation = read_meta(path).validation
            wanted |= {path_of(parent.parent, validation.best_steps).name} if validation else set()
    for path in parent.glob("step-*"):
        if path.name not in wanted:
            shutil.rmtree(path)
