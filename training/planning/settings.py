"""The settings of jobs.plan: those of jobs.train, the cluster, and sizes in place of the dataset's; loads no torch."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from pipeline.errors import InputError
from training.run.settings import TrainSettings


@dataclass
class FeasibilitySettings(TrainSettings):
    """conf/plan.yaml."""

    out: str = ""  # nothing is written
    cluster: str = MISSING  # hosts x devices a host x device: H200 H100 A100 A100-40 V100 V100-16 A10 L4 T4 cpu
    rows: dict[str, int] = field(default_factory=dict)  # by field, the rows of a table in place of the dataset's
    impressions: int | None = None  # of an epoch, in place of the dataset's
    keep_free: float = 0.1  # of a rank's memory, for CUDA's context, NCCL and fragments
    host_memory_gb: float = 512.0
    network_gbit_per_s: float = 200.0  # between hosts, for each rank

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.keep_free < 1.0:
            raise InputError(f"keep_free={self.keep_free} is outside [0, 1).")
        if self.impressions is not None and self.impressions < 1:
            raise InputError(f"impressions={self.impressions} is below 1.")
        for name in ("host_memory_gb", "network_gbit_per_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} is not above 0.")
