"""The settings of jobs.score: the tree behind conf/score.yaml. What raw ids mean is the run's own, not a setting."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from pipeline.config.preprocess import SourceSettings, SparkSettings
from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError


@dataclass
class ScoredLogSettings(SourceSettings):
    """The group `source`, of a log whose labels are not read."""

    path: str = ""  # the folder of the raw log; empty: data is scored in its place


@dataclass
class ScoreSettings:
    """All settings of jobs.score: conf/score.yaml."""

    run: str = MISSING  # the folder of a run that jobs.train has trained
    out: str = MISSING  # the scores
    checkpoint: str = "newest"  # newest | best: the one that validation found best | step-N
    data: str | None = None  # a dataset to score in place of a raw log (source.path)
    split: str = "test"  # of data: train | validation | test
    overwrite: bool = False  # replace scores of another log, checkpoint or settings
    staging: str = ""  # source=events with an address as out: a directory that all workers see
    impressions_per_batch: int = 8192  # that the model is given at once; more take more memory
    source: ScoredLogSettings = field(default_factory=ScoredLogSettings)
    spark: SparkSettings = field(default_factory=SparkSettings)

    def __post_init__(self) -> None:
        if (self.data is None) == (self.source.path == ""):
            both = "both given" if self.source.path else "both missing"
            raise InputError(
                f"source.path and data are {both}; give the folder of a raw log (source.path=…) or a dataset (data=…)."
            )
        if self.split not in SPLITS:
            raise InputError(f"split={self.split} is not one of {', '.join(SPLITS)}.")
        if self.impressions_per_batch < 1:
            raise InputError(f"impressions_per_batch={self.impressions_per_batch} is below 1; give 1 or more.")
