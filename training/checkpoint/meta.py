"""checkpoint.json: what it says, written and read in one place. Nothing in it is believed before it is checked."""

import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import xxhash

from pipeline.dataset.json_text import parse_json
from pipeline.dataset.named_files import NamedFiles
from pipeline.errors import InputError, printable, reason_of

FORMAT_VERSION = 1
META_FILE = "checkpoint.json"
TOWERS_FILE = "towers.safetensors"
#: A file is some 100 bytes of it; this is room for 300,000 ranks.
_MOST_BYTES = 32 << 20
_KEYS = frozenset(("format_version", "position", "manifest_xxh3", "judged", "world_size", "files"))

State = TypeVar("State")


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


class SavedFile(NamedTuple):
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


def rank_file(rank: int) -> str:
    """Return the name of the file with the rows that `rank` stored."""
    return f"rank-{rank:05d}.safetensors"


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
        "files": {name: entry._asdict() for name, entry in files.items()},
        "total_steps": steps_of(checkpoint.path),
    }
    if checkpoint.window:
        meta["log_window"] = asdict(checkpoint.window)
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
            text = stream.read(_MOST_BYTES + 1)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{where} cannot be read ({printable(reason_of(error))}); {remedy}") from error
    if len(text) > _MOST_BYTES:
        raise InputError(f"{where} has more than {_MOST_BYTES} bytes; {remedy}")
    raw = parse_json(text, where, remedy)
    try:
        return _checked(path, raw)
    except ValueError as error:
        raise InputError(f"{where}: {printable(str(error))}; {remedy}") from error


def _canonical(meta: Mapping[str, Any]) -> str:
    return json.dumps(meta, indent=1, sort_keys=True)


def _content_xxh3(meta: Mapping[str, Any]) -> str:
    """Hash all of `meta` but its own checksum."""
    return xxhash.xxh3_64_hexdigest(_canonical({key: meta[key] for key in meta if key != "content_xxh3"}).encode())


def _checked(path: Path, raw: Any) -> tuple[Checkpoint, dict[str, SavedFile]]:
    """Return what `raw` says. Raises ValueError, with the value and the rule."""
    if not isinstance(raw, dict) or not raw.keys() >= _KEYS:
        raise ValueError(f"it is no object with the keys {', '.join(sorted(_KEYS))}")
    if raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"it has format_version={raw['format_version']!r}, and this release reads {FORMAT_VERSION}")
    if raw.keys() > _KEYS and raw.get("content_xxh3") != _content_xxh3(raw):  # the first releases wrote _KEYS alone
        raise ValueError(
            f"its content has the checksum {_content_xxh3(raw)} where it says content_xxh3={raw.get('content_xxh3')!r}"
        )
    position = _state(Position, raw["position"], "position")
    validation = None if raw["judged"] is None else _state(ValidationState, raw["judged"], "judged")
    total_steps = steps_of(path)
    if raw.get("total_steps", total_steps) != total_steps:
        raise ValueError(f"it is of step {raw['total_steps']!r}, and its folder is {path.name}")
    if not _is_possible(position, total_steps):
        raise ValueError(f"position={asdict(position)} is not possible after {total_steps} steps")
    if validation and not validation.best_steps <= validation.total_steps <= total_steps:
        raise ValueError(f"judged={asdict(validation)} is not possible after {total_steps} steps")
    manifest_xxh3, num_ranks = _xxh3(raw["manifest_xxh3"], "manifest_xxh3"), raw["world_size"]
    if type(num_ranks) is not int or num_ranks < 1:
        raise ValueError(f"world_size={num_ranks!r} is no number of ranks")
    files = _files(raw["files"])
    if len(files) != num_ranks + 1 or sorted(files) != [*map(rank_file, range(num_ranks)), TOWERS_FILE]:
        raise ValueError(f"it names {len(files)} files, which are not those of world_size={num_ranks}")
    window = None if raw.get("log_window") is None else _log_window(raw["log_window"])
    return Checkpoint(path, position, manifest_xxh3, tuple(sorted(files)), validation, window), files


def _log_window(raw: Any) -> LogWindow:
    if not isinstance(raw, dict) or raw.keys() != {"num_steps", "loss_sums", "norm_sum"}:
        raise ValueError(f"log_window={raw!r} is no object with the keys num_steps, loss_sums, norm_sum")
    numbers = raw["loss_sums"]
    if not isinstance(numbers, list) or not all(type(value) in (int, float) for value in numbers):
        raise ValueError(f"log_window.loss_sums={numbers!r} is no list of numbers")
    if type(raw["norm_sum"]) not in (int, float, type(None)):
        raise ValueError(f"log_window.norm_sum={raw['norm_sum']!r} is no number")
    return LogWindow(_count(raw["num_steps"], "log_window.num_steps"), tuple(numbers), raw["norm_sum"])


def _is_possible(position: Position, total_steps: int) -> bool:
    """Check that some number of steps an epoch, more than `position.step`, leads to `total_steps`."""
    if position.epoch == 0:
        return position.step == total_steps
    steps_per_epoch, rest = divmod(total_steps - position.step, position.epoch)
    return rest == 0 and position.step < steps_per_epoch


def _files(raw: Any) -> dict[str, SavedFile]:
    if not isinstance(raw, dict) or not all(
        isinstance(entry, dict) and entry.keys() == {"bytes", "xxh3"} for entry in raw.values()
    ):
        raise ValueError("files is no object of entries with bytes and xxh3")
    for name, entry in raw.items():
        _count(entry["bytes"], f"files.{name}.bytes")
        _xxh3(entry["xxh3"], f"files.{name}.xxh3")
    return {name: SavedFile(**entry) for name, entry in raw.items()}


def _state(kind: type[State], raw: Any, key: str) -> State:
    """Return an instance of the dataclass `kind`, whose numbers are counts."""
    hints = typing.get_type_hints(kind)
    needed = {entry.name for entry in fields(kind) if entry.default is MISSING}  # type: ignore[arg-type]
    if not isinstance(raw, dict) or not needed <= raw.keys() <= hints.keys():
        raise ValueError(f"{key}={raw!r} is no object with the keys {', '.join(hints)}")
    for name, value in raw.items():
        allowed = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        if type(value) not in allowed and not (type(value) is int and float in allowed):
            raise ValueError(f"{key}.{name}={value!r} is not of the type {hints[name]}")
        if type(value) is int and int in allowed:
            _count(value, f"{key}.{name}")
    return kind(**raw)


def _count(value: Any, key: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{key}={value!r} is no count of 0 or more")
    return value


def _xxh3(value: Any, key: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{16}", value):
        raise ValueError(f"{key}={value!r} is no checksum of 16 hex digits")
    return value
