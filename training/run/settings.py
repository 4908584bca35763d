"""The settings of a training run: the tree behind conf/train.yaml, one dataclass a group.

Each setting has its default and its comment here and nowhere else; `--help` prints both (jobs.entry). The settings of all
rooms are in modules that load no torch, so a wrong setting is refused, and `--help` answered, at once.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from omegaconf import MISSING

from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError
from pipeline.locations import is_address
from pipeline.object_files import check_address
from training.checkpoint.settings import CheckpointSettings, check_which
from training.distributed.settings import AverageSettings, OptimizerSettings, ShardingSettings, WorldSettings
from training.feed.plan import PlanSettings
from training.feed.settings import NO_P_CTR, FeedSettings
from training.model.settings import PRECISIONS, EmbeddingSettings, ModelSettings

if TYPE_CHECKING:
    from training.checkpoint.meta import ValidationState


def check_tracking_uri(key: str, uri: str) -> None:
    """Raise InputError, of the setting `key`, unless `uri` is the address of a server."""
    if not uri.startswith(("http://", "https://")) or not urlsplit(uri).hostname:
        raise InputError(
            f"{key}={uri} is no address of an MLflow server; give one such as http://127.0.0.1:5000 (mlflow server)."
        )


@dataclass
class LogSettings:
    """The group `log`."""

    every_steps: int = 20  # an entry of log.jsonl
    line_every_s: float = 10.0  # a line on stderr, where that is no terminal
    mlflow: str | None = None  # an MLflow server that follows the run: http://127.0.0.1:5000; null: none
    mlflow_experiment: str = "entirespace"  # made where there is none

    def __post_init__(self) -> None:
        if self.mlflow is not None:
            check_tracking_uri("log.mlflow", self.mlflow)
        if self.every_steps < 1:
            raise InputError(f"log.every_steps={self.every_steps} is below 1; 1 logs every step.")
        if self.line_every_s < 0:
            raise InputError(f"log.line_every_s={self.line_every_s} is negative; give seconds, 0 or more.")


@dataclass
class ValidationSettings:
    """The group `validation`."""

    split: str | None = "validation"  # skipped where the dataset has none; null: never
    every_steps: int = 0  # 0: at the end of each epoch

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise InputError(f"validation.every_steps={self.every_steps} is negative; 0 is the end of each epoch.")
        if self.split is not None and self.split not in SPLITS:
            raise InputError(f"validation.split={self.split} is not one of {', '.join(SPLITS)}; null validates never.")

    def is_due(self, steps_done: int, ends_epoch: bool) -> bool:
        """Decide whether to validate after `steps_done` steps of the run."""
        return steps_done > 0 and (steps_done % self.every_steps == 0 if self.every_steps else ends_epoch)


@dataclass
class EarlyStoppingSettings:
    """The group `early_stopping`."""

    metric: str | None = None  # ctr_auc, cvr_auc, ctcvr_auc, loss, …; null: the last AUC that the model's outputs allow
    patience: int = 0  # validations in a row without a better one that end training; 0: never

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise InputError(f"early_stopping.patience={self.patience} is negative; 0 never stops early.")

    def is_over(self, state: "ValidationState | None") -> bool:
        """Decide whether the validations so far have ended the run."""
        return state is not None and 0 < self.patience <= state.num_worse


@dataclass
class TrainSettings:
    """conf/train.yaml."""

    data: str = MISSING  # the dataset, as jobs.preprocess wrote it
    out: str = MISSING  # the run: a folder or an address (s3://…); the same command resumes there
    seed: int = 1  # of the initial values and of dropout
    init_from: str | None = None  # a run whose model is trained on here; rows follow their raw ids, new ids start fresh
    init_from_checkpoint: str = "newest"  # of that run: newest | best: the one that validation found best | step-N
    ctr_run: str | None = None  # a run whose predictions of the train split are the pCTR of model.sampling.by_p_ctr
    epochs: int = 1
    ranks: int = 1  # processes of this host, which this command starts; torchrun starts its own
    precision: str = (
        "fp32"  # of the towers' matrix products: fp32 | tf32 (on a GPU) | bf16; weights, gradients and tables stay fp32
    )
    plan: PlanSettings = field(default_factory=PlanSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    average: AverageSettings = field(default_factory=AverageSettings)
    sharding: ShardingSettings = field(default_factory=ShardingSettings)
    feed: FeedSettings = field(default_factory=FeedSettings)
    checkpoint: CheckpointSettings = field(
        default_factory=CheckpointSettings
    )  # one at the end of each epoch in any case
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    early_stopping: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)
    log: LogSettings = field(default_factory=LogSettings)
    world: WorldSettings = field(default_factory=WorldSettings)

    def __post_init__(self) -> None:
        for name in ("out", "init_from", "ctr_run"):
            if is_address(str(getattr(self, name))):
                check_address(name, getattr(self, name))
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is negative; give a whole number from 0.")
        if self.epochs < 1:
            raise InputError(f"epochs={self.epochs} is below 1.")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision={self.precision} is not one of {', '.join(PRECISIONS)}.")
        check_which(self.init_from_checkpoint, "init_from_checkpoint")
        by_p_ctr = self.model.sampling.by_p_ctr
        if self.ctr_run is None and by_p_ctr != NO_P_CTR:
            raise InputError(
                f"model.sampling.by_p_ctr={by_p_ctr} needs pCTR of another network: give ctr_run=RUN of a run of model=ctr "
                "whose train split jobs.evaluate has predicted."
            )
        if self.ctr_run is not None and by_p_ctr == NO_P_CTR:
            raise InputError(
                f"ctr_run={self.ctr_run} has no effect on this model; choose model=unbias or model=unbias_weighted, or leave it out."
            )
