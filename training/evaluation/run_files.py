"""Read what a run leaves behind: the metrics and predictions of a split, and the log of the training."""

import json
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from training.evaluation.metrics import Metrics
from training.evaluation.prediction_files import PredictionFiles

LogEntry = dict[str, float]
#: The folder, in that of a run, of results that have a place of their own (training.run.provenance).
EVALUATIONS = "evaluations"


def read_metrics(run: Path, split: str) -> Metrics:
    """Read metrics.<split>.json, or metrics.json where that is missing. Raises InputError if neither is of `split`."""
    for path in (run / f"metrics.{split}.json", run / "metrics.json"):
        if path.exists():
            try:
                metrics = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{path} is not JSON ({error}); {_evaluate_command(run, split)}") from error
            if not isinstance(metrics, dict):
                raise InputError(f"{path} holds no figures by name; {_evaluate_command(run, split)}")
            if metrics.pop("split", split) == split:
                return metrics
    raise InputError(f"run={run} has no metrics of split={split}; {_evaluate_command(run, split)}")


def read_predictions(run: Path, split: str) -> PredictionFiles:
    """Return the numeric columns of RUN/predictions/<split>, each read when it is asked for.

    Raises InputError if there are no predictions, or a file cannot be read.
    """
    folder = run / "predictions" / split
    if not list(folder.glob("*.parquet")):
        raise InputError(f"run={run} has no predictions of split={split}; {_evaluate_command(run, split)}")
    return PredictionFiles(folder, _evaluate_command(run, split))


def read_log(path: Path) -> tuple[list[LogEntry], int]:
    """Read the steps of log.jsonl in order, and count the broken lines.

    A step that was logged twice, because the run was resumed before it, is taken from its later line.
    """
    steps: dict[int, LogEntry] = {}
    num_broken = 0
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            if "loss" in entry:
                steps[int(entry["step"])] = entry
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            num_broken += 1
    return [steps[step] for step in sorted(steps)], num_broken


def read_validations(path: Path) -> list[LogEntry]:
    """Read the validations of log.jsonl in order of steps: step, and validation_<name> of every figure that is defined."""
    steps: dict[int, LogEntry] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            figures = {
                name: float(entry[name]) for name in entry if name.startswith("validation_") and entry[name] is not None
            }
            if figures:
                steps[int(entry["step"])] = {"step": int(entry["step"])} | figures
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    return [steps[step] for step in sorted(steps)]


class BestValidation(NamedTuple):
    """What log.jsonl says of the validations of a run."""

    metric: str
    value: float
    step: int
    stopped_early: int | None  # the step; None for a run that went on to its last one


def best_validation(path: Path) -> BestValidation | None:
    """Read the best validation from the latest one in log.jsonl; None where there is none, or none whose metric is defined."""
    found = None
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            value, best_step = float(entry["best_value"]), int(entry["best_step"])
            stopped = int(entry["step"]) if entry.get("stops_early") else None
            found = BestValidation(str(entry["best_metric"]), value, best_step, stopped)
        except (ValueError, KeyError, TypeError):  # a step of training, an undefined one, or a line that was cut short
            continue
    return found


def _evaluate_command(run: Path, split: str) -> str:
    return f"write them with: python -m jobs.evaluate run={run} split={split}"
