"""The settings of jobs.gbdt; loads neither torch nor XGBoost."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError
from pipeline.locations import refuse_address

CVR, CTR = "cvr", "ctr"
_MOST_TREES, _MOST_DEPTH, _MOST_FOLDS = 100_000, 32, 100


@dataclass
class TreeSettings:
    """The group `trees`: XGBoost's, as ESM² §4.1.3 chose them."""

    number: int = 150
    depth: int = 8
    min_instances: int = 20  # that a node must have to be split
    row_share: float = 0.6  # drawn for each tree
    feature_share: float = 0.6  # drawn for each tree
    learning_rate: float = 0.1  # the paper has none

    def __post_init__(self) -> None:
        for name, most in (("number", _MOST_TREES), ("depth", _MOST_DEPTH), ("min_instances", 10**9)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"trees.{name}={getattr(self, name)} is not from 1 to {most}.")
        for name in ("row_share", "feature_share", "learning_rate"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InputError(f"trees.{name}={getattr(self, name)} is not above 0 and at most 1.")


@dataclass
class GbdtSettings:
    """conf/gbdt.yaml."""

    data: str = MISSING  # the dataset, as jobs.preprocess wrote it
    out: str = MISSING  # the folder of the trees; the same command evaluates them again
    target: str = CVR  # cvr: a click's conversion | ctr: an impression's click
    split: str = "test"  # that is predicted and evaluated: train | validation | test
    ctr_run: str | None = None  # of target=ctr, the same split predicted: its pCTR makes p_ctcvr of p_cvr
    seed: int = 1  # of the rows and features that each tree draws
    threads: int = 1  # of XGBoost
    trees: TreeSettings = field(default_factory=TreeSettings)
    smoothing: float = 20.0  # instances at the mean rate that are added to those of an id
    folds: int = 5  # an id's rate is that of the other folds' contexts, for the contexts that the trees learn from

    def __post_init__(self) -> None:
        refuse_address("out", self.out)
        if self.target not in (CVR, CTR):
            raise InputError(f"target={self.target} is not one of {CVR}, {CTR}.")
        if self.split not in SPLITS:
            raise InputError(f"split={self.split} is not one of {', '.join(SPLITS)}.")
        if self.ctr_run is not None and self.target == CTR:
            raise InputError(f"ctr_run={self.ctr_run} has no effect on target=ctr; leave it out.")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is negative; give a whole number from 0.")
        if not 1 <= self.threads <= 1024:
            raise InputError(f"threads={self.threads} is not from 1 to 1024.")
        if not 0.0 < self.smoothing < float("inf"):
            raise InputError(f"smoothing={self.smoothing} is not a finite number above 0.")
        if not 2 <= self.folds <= _MOST_FOLDS:
            raise InputError(f"folds={self.folds} is not from 2 to {_MOST_FOLDS}.")
