"""Checkpoints: all that a run needs to go on, written beside it and renamed when whole; nothing in them is a pickle.

    RUN/checkpoints/step-00001234/
      rank-00000.safetensors   the rows that rank 0 held: <table>/<first row>/weight and its optimizer's state
      towers.safetensors       the replicated parameters and Adam's state
      checkpoint.json          position, tables, and size and checksum of each file; written last

A table's rows are found by their row numbers, so any number of ranks restores what any number saved. The masks of
dropout and the order of the data are functions of the position, so there is no random state to keep.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.manifest import InputError
from training.place import Placed, Shard
from training.settings import CHECKPOINTS
from training.world import World

FORMAT_VERSION = 1
META = "checkpoint.json"
TOWERS = "towers.safetensors"
KEEP = 2  # the newest whole one, and the one before in case the disk damages it
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step to take is `step` of `epoch`."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    position: Position
    manifest_xxh3: str
    files: tuple[str, ...]


def folder(run: Path) -> Path:
    """Where the checkpoints of `run` are."""
    return run / CHECKPOINTS


def save(run: Path, placed: Placed, position: Position, total_steps: int, manifest_xxh3: str, world: World) -> Path:
    """Write the state of all ranks after `total_steps` steps; the checkpoint appears whole or not at all.

    Every rank calls it. Raises InputError on all of them where one cannot write.
    """
    final = folder(run) / f"step-{total_steps:08d}"
    staging = folder(run) / f".{final.name}.tmp"
    tensors = dict(_shard_tensors(placed.shards))
    if world.rank == 0:
        _sweep(staging)
    world.barrier()
    mine = [0, 0, 0]
    with _agreed(world, final):
        mine = _write(staging / _rank_file(world.rank), tensors)
        towers = _write(staging / TOWERS, tower_tensors(placed)) if world.rank == 0 else None
    written = world.gather(mine)
    with _agreed(world, final):
        if world.rank == 0:
            entries = {_rank_file(rank): row for rank, row in enumerate(written)}
            assert towers is not None
            entries[TOWERS] = towers
            _commit(staging, final, position, manifest_xxh3, world.size, entries)
    world.barrier()
    return final


def newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of `run`; each that is damaged is named to `say` and passed over."""
    if not folder(run).is_dir():
        return None
    for path in sorted(folder(run).glob("step-*"), reverse=True):
        try:
            return _checked(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{path} is not whole ({error}) and is passed over.")
    return None


def agreed_newest(run: Path, world: World, say: Callable[[str], None]) -> Checkpoint | None:
    """`newest` as rank 0 sees it; it alone reads the files to check them."""
    found = newest(run, say) if world.rank == 0 else None
    total_steps = world.broadcast(int(found.path.name.removeprefix("step-")) if found else -1)
    if total_steps < 0:
        return None
    return found or _meta(folder(run) / f"step-{total_steps:08d}")


def restore(checkpoint: Checkpoint, placed: Placed) -> None:
    """Fill `placed` from `checkpoint`, whatever number of ranks wrote it.

    Raises InputError where a table or a tower has another shape than the saved one.
    """
    try:
        readers = [safe_open(checkpoint.path / name, framework="pt") for name in checkpoint.files if name != TOWERS]
        pieces: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        for reader in readers:
            for key in reader.keys():  # noqa: SIM118
                table, first_row, part = key.split("/")
                pieces.setdefault((table, part), []).append((int(first_row), reader.get_slice(key)))
        for shard in placed.shards:
            for part, rows in {"weight": shard.weight, **shard.optimizer}.items():
                _fill(rows, shard.first_row, pieces.get((shard.table, part), []), f"{shard.table}/{part}", checkpoint)
        with safe_open(checkpoint.path / TOWERS, framework="pt") as reader:
            load_towers(placed, {key: reader.get_tensor(key) for key in reader.keys()}, checkpoint)  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"{checkpoint.path} cannot be read ({error}); delete it to go on from the one before."
        ) from error


def tower_tensors(placed: Placed) -> dict[str, Tensor]:
    """The replicated state by name: the towers' parameters, and Adam's moments and step counts."""
    tensors = {}
    for name, parameter in placed.towers.named_parameters():
        tensors[name] = parameter.detach()
        for key, value in placed.tower_optimizer.state.get(parameter, {}).items():
            tensors[f"adam/{name}/{key}"] = value
    return tensors


def load_towers(placed: Placed, saved: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Fill the towers and their optimizer from `saved`; InputError where a shape differs."""
    for name, parameter in placed.towers.named_parameters():
        _check_shape(name, saved.get(name), parameter, checkpoint)
        with torch.no_grad():
            parameter.copy_(saved[name])
        prefix = f"adam/{name}/"
        moments = {key.removeprefix(prefix): value.clone() for key, value in saved.items() if key.startswith(prefix)}
        if moments:
            placed.tower_optimizer.state[parameter] = {
                key: value.to(parameter.device) for key, value in moments.items()
            }


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


def _shard_tensors(shards: list[Shard]) -> Iterator[tuple[str, Tensor]]:
    for shard in (shard for shard in shards if shard.saved):
        for part, rows in {"weight": shard.weight, **shard.optimizer}.items():
            yield f"{shard.table}/{shard.first_row}/{part}", rows


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


class _agreed:
    """A block whose OSError, on any rank, becomes the same InputError on every rank."""

    def __init__(self, world: World, path: Path) -> None:
        self.world, self.path = world, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None and not isinstance(error, OSError):
            return False
        self.world.agree(
            InputError(
                f"The checkpoint {self.path} cannot be written ({error}); free some space and run the same command "
                "again: it goes on from the last whole checkpoint."
            )
            if error
            else None
        )
        return True


def _write(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    """Write a safetensors file straight from the tensors' memory, to disk and not only to the cache.

    Returns its size and the halves of its xxh3. (The library's own writer would copy every table once, and refuses
    tables that share a buffer, as FBGEMM's do.)
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
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


def _commit(
    staging: Path,
    final: Path,
    position: Position,
    manifest_xxh3: str,
    world_size: int,
    entries: Mapping[str, list[int]],
) -> None:
    files = {name: {"bytes": row[0], "xxh3": f"{(row[1] << 32) + row[2]:016x}"} for name, row in entries.items()}
    meta = {
        "format_version": FORMAT_VERSION,
        "position": asdict(position),
        "manifest_xxh3": manifest_xxh3,
        "world_size": world_size,
        "files": files,
    }
    with (staging / META).open("w") as stream:
        json.dump(meta, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(staging)
    if final.exists():  # damaged, or it would have been resumed from
        shutil.rmtree(final)
    os.replace(staging, final)
    _sync_folder(final.parent)
    for old in sorted(final.parent.glob("step-*"), reverse=True)[KEEP:]:
        shutil.rmtree(old)


def _sweep(staging: Path) -> None:
    """A fresh staging folder; what earlier kills left is removed."""
    for left in staging.parent.glob(".step-*.tmp"):
        shutil.rmtree(left)
    staging.mkdir(parents=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _meta(path: Path) -> Checkpoint:
    raw = json.loads((path / META).read_text())
    if raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version={raw['format_version']}, and this release reads {FORMAT_VERSION}")
    return Checkpoint(path, Position(**raw["position"]), raw["manifest_xxh3"], tuple(sorted(raw["files"])))


def _checked(path: Path) -> Checkpoint:
    """The checkpoint at `path`; ValueError or OSError where a file is missing, cut or changed."""
    checkpoint = _meta(path)
    for name, expected in json.loads((path / META).read_text())["files"].items():
        if Path(name).name != name:
            raise ValueError(f"it names {name!r}, which is not a file of its own folder")
        if (path / name).stat().st_size != expected["bytes"]:
            raise ValueError(f"{name} has another size than {META} says")
        with (path / name).open("rb") as stream:
            if _digest(stream) != expected["xxh3"]:
                raise ValueError(f"{name} has another checksum than {META} says")
    return checkpoint


def _digest(stream: BinaryIO) -> str:
    digest = xxhash.xxh3_64()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
