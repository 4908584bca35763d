"""checkpoint.json: what it says, written and read in one place. Nothing in it is believed before it is checked."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from pipeline.dataset.json_text import parse_json, typed
from pipeline.dataset.named_files import NamedFiles
from pipeline.errors import InputError, printable, reason_of
from training.distributed.settings import AverageState

FORMAT_VERSION = 1
META_FILE = "checkpoint.json"
TOWERS_FILE = "towers.safetensors"
AVERAGE_TOWERS_FILE = "average-towers.safetensors"
#: A file is some 100 bytes of it; this is room for 300,000 ranks.
_LARGEST_META_BYTES = 32 << 20
_KEYS = frozenset(("format_version", "position", "manifest_xxh3", "judged", "world_size", "files"))


@dataclass(frozen=True)
class Position:
    """The position of a run: the next step to take is `step` of `epoch`."""

    epoch: int
    step: int


@dataclass(frozen=True)
class ValidationState:
    """The validations of a run so far: the latest one, the best one, and those since the best."""

    total_steps: int  # done at the latest validation
    best: float | None  # the best value of early_stopping.metric; None while it is undefined
    best_steps: int  # done when it was found; the checkpoint of that step is kept
    num_worse: int  # validations since
    metric: str | None = None  # of which `best` is a value; None in what older releases saved


@dataclass(frozen=True)
class LogWindow:
    """The steps that the log has no entry of yet: of a run that is resumed, the next entry has them too."""

    num_steps: int
    loss_sums: tuple[float, ...]  # of each loss's mean over the global batch
    norm_sum: float | None  # of the towers' gradients; None: not finite


@dataclass(frozen=True)
class SavedFile:
    """What checkpoint.json says of one file."""

    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    position: Position
    manifest_xxh3: str
    files: tuple[str, ...]
    validation: ValidationState | None = None
    window: LogWindow | None = None
    average: AverageState | None = None  # None: of no step, or average.kind=none, or an older release


def rank_file(rank: int) -> str:
    """Return the name of the file with the rows that `rank` stored."""
    return f"rank-{rank:05d}.safetensors"


def average_file(rank: int) -> str:
    """Return the name of the file with the averages of the rows that `rank` stored."""
    return f"average-{rank:05d}.safetensors"


def file_names(world_size: int, has_average: bool) -> list[str]:
    """List the files of tensors of a checkpoint that `world_size` ranks wrote."""
    names = [*map(rank_file, range(world_size)), TOWERS_FILE]
    return [*names, *map(average_file, range(world_size)), AVERAGE_TOWERS_FILE] if has_average else names


def path_of(run: Path, total_steps: int) -> Path:
    """Return the folder of the checkpoint after `total_steps` steps."""
    return run / "checkpoints" / f"step-{total_steps:08d}"


def steps_of(path: Path) -> int:
    """Return the number of steps after which the checkpoint at `path` was saved."""
    return int(path.name.removeprefix("step-"))


def meta_text(checkpoint: Checkpoint, world_size: int, files: Mapping[str, SavedFile]) -> str:
    """Return the content of checkpoint.json."""
    meta = {
        "format_version": FORMAT_VERSION,
        "position": asdict(checkpoint.position),
        "manifest_xxh3": checkpoint.manifest_xxh3,
        "judged": asdict(checkpoint.validation) if checkpoint.validation else None,
        "world_size": world_size,
        "files": {name: asdict(entry) for name, entry in files.items()},
        "total_steps": steps_of(checkpoint.path),
    }
    if checkpoint.window:
        meta["log_window"] = asdict(checkpoint.window)
    if checkpoint.average:
        meta["average"] = asdict(checkpoint.average)
    return _canonical(meta | {"content_xxh3": _content_xxh3(meta)})


def read_meta(path: Path, remedy: str) -> tuple[Checkpoint, dict[str, SavedFile]]:
    """Read the checkpoint.json at `path`, and return what it says of each file; the files themselves are not read.

    Raises InputError, which ends with `remedy`, for a value of another type or outside its range, for values that
    contradict each other, and for a content with another checksum than its own.
    """
    where = str(path / META_FILE)
    named = NamedFiles.below(path, f"The folder {path}", remedy)
    with named.open(META_FILE) as stream:
        try:
            text = stream.read(_LARGEST_META_BYTES + 1)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{where} cannot be read ({printable(reason_of(error))}); {remedy}") from error
    if len(text) > _LARGEST_META_BYTES:
        raise InputError(f"{where} has more than {_LARGEST_META_BYTES} bytes; {remedy}")
    raw = parse_json(text, where, remedy)
    try:
        return _meta_of(path, raw)
    except ValueError as error:
        raise InputError(f"{where}: {printable(str(error))}; {remedy}") from error


def _canonical(meta: Mapping[str, Any]) -> str:
    return json.dumps(meta, indent=1, sort_keys=True)


def _content_xxh3(meta: Mapping[str, Any]) -> str:
    """Hash all of `meta` but its own checksum."""
    return xxhash.xxh3_64_hexdigest(_canonical({key: meta[key] for key in meta if key != "content_xxh3"}).encode())


def _meta_of(path: Path, raw: Any) -> tuple[Checkpoint, dict[str, SavedFile]]:
    """Return what `raw` says. Raises ValueError, with the value and the rule."""
    if not isinstance(raw, dict) or not raw.keys() >= _KEYS:
        raise ValueError(f"it is no object with the keys {', '.join(sorted(_KEYS))}")
    if raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"it has format_version={raw['format_version']!r}, and this release reads {FORMAT_VERSION}")
    if raw.keys() > _KEYS and raw.get("content_xxh3") != _content_xxh3(raw):  # the first releases wrote _KEYS alone
        raise ValueError(
            f"its content has the checksum {_content_xxh3(raw)} where it says "
            f"content_xxh3={str(raw.get('content_xxh3'))[:40]}"
        )
    position: Position = typed(Position, raw["position"], "position")
    validation: ValidationState | None = typed(ValidationState | None, raw["judged"], "judged")
    total_steps = steps_of(path)
    if raw.get("total_steps", total_steps) != total_steps:
        raise ValueError(f"it is of step {raw['total_steps']!r}, and its folder is {path.name}")
    if not _leads_to(total_steps, position):
        raise ValueError(f"position={asdict(position)} is not possible after {total_steps} steps")
    if validation and not (
        0 <= validation.best_steps <= validation.total_steps <= total_steps and validation.num_worse >= 0
    ):
        raise ValueError(f"judged={asdict(validation)} is not possible after {total_steps} steps")
    manifest_xxh3, num_ranks = _xxh3(raw["manifest_xxh3"], "manifest_xxh3"), raw["world_size"]
    if type(num_ranks) is not int or num_ranks < 1:
        raise ValueError(f"world_size={num_ranks!r} is no number of ranks")
    average = _average(raw.get("average"), total_steps)
    files = _files(raw["files"])
    num_files = (num_ranks + 1) * (2 if average else 1)
    if len(files) != num_files or sorted(files) != sorted(file_names(num_ranks, average is not None)):
        raise ValueError(f"it names {len(files)} files, which are not those of world_size={num_ranks}")
    window: LogWindow | None = typed(LogWindow | None, raw.get("log_window"), "log_window")
    if window and not 0 <= window.num_steps <= total_steps:
        raise ValueError(f"log_window.num_steps={window.num_steps} is not possible after {total_steps} steps")
    return Checkpoint(path, position, manifest_xxh3, tuple(sorted(files)), validation, window, average), files


def _average(raw: Any, total_steps: int) -> AverageState | None:
    average: AverageState | None = typed(AverageState | None, raw, "average")
    if average and not (
        0 <= average.since < average.snapshot <= average.steps == total_steps and 0.0 <= average.power < math.inf
    ):
        raise ValueError(f"average={asdict(average)} is not possible after {total_steps} steps")
    return average


def _leads_to(total_steps: int, position: Position) -> bool:
    """Check that some number of steps an epoch, more than `position.step`, leads to `total_steps`."""
    if position.step < 0 or position.epoch <= 0:
        return position.epoch == 0 and position.step == total_steps
    steps_per_epoch, rest = divmod(total_steps - position.step, position.epoch)
    return rest == 0 and position.step < steps_per_epoch


def _files(raw: Any) -> dict[str, SavedFile]:
    entries: dict[str, SavedFile] = {}
    for name, entry in typed(Mapping[str, Any], raw, "files").items():
        entries[name] = typed(SavedFile, entry, f"files.{name}")
        _xxh3(entries[name].xxh3, f"files.{name}.xxh3")
        if entries[name].bytes < 0:
            raise ValueError(f"files.{name}.bytes={entries[name].bytes} is negative")
    return entries


def _xxh3(value: Any, key: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{16}", value):
        raise ValueError(f"{key}={value!r} is no checksum of 16 hex digits")
    return value
