"""The settings of a training run, and the copy of them that lies beside its results."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from pipeline.dataset.manifest import InputError
from training.checkpoint.files import CHECKPOINTS, CheckpointSettings
from training.distributed.optimizers import OptimizerSettings
from training.distributed.sharding import ShardingSettings
from training.distributed.world import WorldSettings
from training.feed.feed import FeedSettings
from training.feed.plan import PlanSettings
from training.model.embeddings import EmbeddingSettings
from training.model.entire_space import PRECISIONS, ModelSettings
from training.run.journal import LogSettings
from training.run.validation import EarlyStoppingSettings, ValidationSettings

CONFIG = "config.yaml"
LOCK = ".lock"
#: What may differ when a run is continued: none of it changes a weight. (`data` may move; its manifest may not change.)
_MAY_DIFFER = (
    "data",
    "out",
    "epochs",
    "feed",
    "log",
    "sharding",
    "checkpoint",
    "validation",
    "early_stopping",
    "world",
)


@dataclass
class TrainSettings:
    """conf/train.yaml."""

    data: str = MISSING  # the dataset
    out: str = MISSING  # the run
    seed: int = 1  # of the initial values and of dropout
    init_from: str | None = None  # a run whose model goes on here
    epochs: int = 1
    precision: str = "fp32"  # of the towers' products: fp32 | bf16
    plan: PlanSettings = field(default_factory=PlanSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    sharding: ShardingSettings = field(default_factory=ShardingSettings)
    feed: FeedSettings = field(default_factory=FeedSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    early_stopping: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)
    log: LogSettings = field(default_factory=LogSettings)
    world: WorldSettings = field(default_factory=WorldSettings)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"epochs={self.epochs} is below 1.")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision={self.precision} is not one of {', '.join(PRECISIONS)}.")


def claim(run: Path, settings: TrainSettings) -> None:
    """Write RUN/config.yaml, or find there the settings of the same run.

    Raises InputError where `run` has come to a checkpoint with settings that would give other weights.
    """
    wanted = asdict(settings)
    if (run / CONFIG).exists() and any((run / CHECKPOINTS).glob("step-*")):
        before = asdict(load(run))
        for key in _differences(before, wanted):
            raise InputError(
                f"out={run} was begun with {key}={_at(before, key)} and this command says {_at(wanted, key)}; "
                "go on with the same settings, or choose another out=…."
            )
    try:
        run.mkdir(parents=True, exist_ok=True)
        partial = run / f".{CONFIG}.partial"
        OmegaConf.save(OmegaConf.create(wanted), partial)
        os.replace(partial, run / CONFIG)
    except OSError as error:
        raise InputError(f"out={run} cannot be written ({error}); choose another folder.") from error


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep other processes from training `run` for the length of the block.

    Raises InputError where one does: ranks outlive a torchrun that was killed alone.
    """
    with (run / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise InputError(
                f"out={run} is being trained already, by {stream.read().strip()}; wait for its end or end it, and run "
                "the same command again."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system that has no locks
                raise
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield


def load(run: Path, key: str = "run") -> TrainSettings:
    """The settings of `run`, as plain values: nothing in the file is interpolated or instantiated.

    `key` is the setting that named it, for the sentence where nothing is there.
    """
    path = run / CONFIG
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        raise InputError(
            f"{key}={run} has no {CONFIG}, so no training run is there; start one with: "
            f"torchrun --nproc-per-node 2 -m jobs.train data=DATASET model=esmm out={run}"
        ) from error
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    _refuse_code(raw, str(path))
    try:
        return cast(TrainSettings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainSettings), raw)))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path} does not fit this release ({first}); train the run again.") from error


def _refuse_code(node: Any, where: str) -> None:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        if key == "_target_":
            raise InputError(f"{where} names a _target_; a saved configuration holds values only.")
        _refuse_code(child, where)
    if isinstance(node, str) and "${" in node:
        raise InputError(f"{where} has the interpolation {node!r}; a saved configuration holds values only.")


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
