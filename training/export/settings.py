"""The settings of jobs.export; loads no torch."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from pipeline.errors import InputError
from training.checkpoint.settings import check_which

PT2, AOTI, ONNX = "pt2", "aoti", "onnx"
GRAPH_FORMATS = (PT2, AOTI, ONNX)
TABLE_TYPES = ("fp32", "int8")


@dataclass
class ExportSettings:
    """conf/export.yaml."""

    run: str = MISSING  # the folder of a run that jobs.train has trained
    out: str = MISSING  # a folder that is not there yet
    checkpoint: str = "newest"  # newest | best: the one that validation found best | step-N
    #: pt2: torch.export | aoti: AOTInductor, needs a C++ compiler | onnx: needs onnx, onnxscript and onnxruntime
    formats: list[str] = field(default_factory=lambda: list(GRAPH_FORMATS))
    tables: str = "fp32"  # fp32 | int8: a quarter of the memory; the loss of AUC is printed
    calibrator: bool = False  # calibrate the outputs by RUN/calibrator.json, which jobs.evaluate calibrator=… fits
    data: str | None = None  # where the run's dataset is now, for the check; null: where the run found it
    check_impressions: int = 5000  # of the dataset, scored from raw values on every way; 0: made-up requests alone

    def __post_init__(self) -> None:
        check_which(self.checkpoint, "checkpoint")
        for name in self.formats:
            if name not in GRAPH_FORMATS:
                raise InputError(f"formats={name} is not one of {', '.join(GRAPH_FORMATS)}.")
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise InputError(
                f"formats={self.formats} names no format, or one twice; give some of {', '.join(GRAPH_FORMATS)}."
            )
        if self.tables not in TABLE_TYPES:
            raise InputError(f"tables={self.tables} is not one of {', '.join(TABLE_TYPES)}.")
        if not 0 <= self.check_impressions <= 10_000_000:
            raise InputError(
                f"check_impressions={self.check_impressions} is outside 0 to 10,000,000; some thousands are usual."
            )
