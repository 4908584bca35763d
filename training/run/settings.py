"""The settings of a training run, and the copy of them that lies beside its results."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from pipeline.errors import InputError
from training.checkpoint.files import CheckpointSettings
from training.distributed.optimizers import OptimizerSettings
from training.distributed.sharding import ShardingSettings
from training.distributed.world import WorldSettings
from training.feed.feed import FeedSettings
from training.feed.plan import PlanSettings
from training.model.embeddings import EmbeddingSettings
from training.model.entire_space import PRECISIONS, ModelSettings
from training.run.journal import LogSettings
from training.run.validation import EarlyStoppingSettings, ValidationSettings


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
