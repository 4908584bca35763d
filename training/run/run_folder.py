"""The folder of a run: its saved settings, and the lock of the process that trains it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, printable, reason_of
from pipeline.file_lock import LockHeld, exclusive_lock
from pipeline.object_lock import claimed
from pipeline.plain_settings import build_settings, read_yaml
from training.checkpoint.files import checkpoint_paths
from training.checkpoint.remote_run import RemoteRun, fetch_on_all_hosts, shared_copy
from training.run.settings import TrainSettings

if TYPE_CHECKING:  # it loads torch, which reading the settings of a run does without
    from training.distributed.world import World

CONFIG = "config.yaml"
_CHECKSUM_COMMENT = "# xxh3 of the lines above: "
LOCK = ".lock"

#: What may differ when a run is continued: none of it changes a weight that is trained. (`data` and `ctr_run` may move;
#: the manifest may not change, nor the predictions. An average with another power begins anew.)
_MAY_DIFFER = (
    "data",
    "out",
    "ctr_run",
    "epochs",
    "ranks",
    "feed",
    "log",
    "sharding",
    "average",
    "checkpoint",
    "validation",
    "early_stopping",
    "world",
)


#: What `init_from` refuses too: the shape of the model.
_SHAPE = (
    "embedding.dim",
    "model.towers.hidden",
    "model.body",
    "model.own_tables",
    "optimizer.embeddings.name",
    "init_from",
)


def check_config(run: Path, settings: TrainSettings) -> None:
    """Compare `settings` with those of the run that is there. The run is locked.

    Raises InputError if `run` has a checkpoint that was trained with settings that give other weights, or with unknown
    ones, because its config.yaml is gone.
    """
    if not checkpoint_paths(run):
        return
    if not (run / CONFIG).exists():
        raise InputError(
            f"out={run} has checkpoints and no {CONFIG}, so nothing says with which settings they were trained; put its "
            f"{CONFIG} back, or train into another out=…."
        )
    before, wanted = asdict(load_settings(run, "out")), asdict(settings)
    for key in _differences(before, wanted):
        raise InputError(
            f"out={run} was started with {key}={_at(before, key)} and this command says {_at(wanted, key)}; "
            f"resume with the same settings, or choose another out=….{_remedy_for(key, run)}"
        )


def write_config(run: Path, settings: TrainSettings) -> None:
    """Write RUN/config.yaml. The run is locked."""
    try:
        text = _with_checksum(OmegaConf.to_yaml(OmegaConf.create(asdict(settings))))
        write_whole(run / CONFIG, text, mode=0o600)
    except OSError as error:
        raise InputError(f"out={run} cannot be written ({reason_of(error)}); choose another folder.") from error


def _remedy_for(key: str, run: Path) -> str:
    """Name the way to train the model of `run` on with another value of `key`, where there is one."""
    if key.startswith(_SHAPE):
        return ""
    return f" To train its model on with another {key}, start a new run from it: init_from={run} and another out=…."


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Lock `run` against other training processes while the block runs; make its folder where there is none.

    Raises InputError if another process trains it: ranks outlive a torchrun that was killed alone.
    """
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(run / LOCK)).sign()
        except LockHeld as error:
            raise InputError(
                f"out={run} is being trained already, by {error.holder or 'another process'}; wait for its end or end it, "
                "and run the same command again."
            ) from None
        except OSError as error:
            raise InputError(f"out={run} cannot be written ({reason_of(error)}); choose another folder.") from error
        yield


@contextmanager
def claimed_run(address: str, world: "World", say: Callable[[str], None]) -> Iterator[RemoteRun]:
    """Claim the run at an address while the block runs, and bring it to every host: its newest checkpoint and small files.

    Every rank must enter it. Raises InputError on all of them if another process trains it, or it cannot be read.
    """
    copy = shared_copy(address, "out", world)
    with ExitStack() as stack:
        with world.agreeing():
            if world.rank == 0:
                copy.claim = stack.enter_context(claimed(copy.address, LOCK, "out"))
        fetch_on_all_hosts(copy, world, say, renames=True)
        yield copy


def load_settings(run: Path, key: str = "run") -> TrainSettings:
    """Read the settings of `run`, as plain values: nothing in the file is interpolated or instantiated.

    `key` is the setting that named it, for the error message if there is no run.
    """
    path = run / CONFIG
    try:
        raw = read_yaml(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{key}={run} has no {CONFIG}, so no training run is there; start one with: "
            f"python -m jobs.train ranks=2 data=DATASET model=esmm out={run}"
        ) from error
    _check_comment(path)
    try:
        return build_settings(TrainSettings, raw)
    except OmegaConfBaseException as error:
        raise InputError(
            f"{path} does not fit this release ({printable(reason_of(error))}); train the run again."
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _with_checksum(text: str) -> str:
    """Append a comment with the checksum of `text`."""
    return f"{text}{_CHECKSUM_COMMENT}{xxhash.xxh3_64_hexdigest(text.encode())}\n"


def _check_comment(path: Path) -> None:
    """Raise InputError where a last line with a checksum does not fit the lines above; earlier releases wrote none."""
    text, comment, _ = path.read_text(encoding="utf-8").rpartition(_CHECKSUM_COMMENT)
    if comment and path.read_text(encoding="utf-8") != _with_checksum(text):
        raise InputError(
            f"{path} has been changed since it was written: its last line has the checksum of other lines; put the "
            "original back, or delete that line if you know that the model was trained with these settings."
        )


def _differences(before: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in {**before, **wanted}:
        if not prefix and key in _MAY_DIFFER:
            continue
        old, new = before.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}")
    return found


def _at(tree: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key, "nothing") if isinstance(tree, dict) else tree
    return tree
