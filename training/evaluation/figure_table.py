"""The figures of an evaluation as a table for a terminal, a row a task, beside what one probability for all would come to."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.terminal import text_table
from training.evaluation.health import POSITIVES
from training.evaluation.metrics import Metrics

#: Columns that are left out where a line is too short, the first ones first.
_LEFT_OUT_FIRST = ("positives", "ECE", "constant", "GAUC", "95 % interval", "calibration", "log loss")


class Baseline(NamedTuple):
    """The best single probability for all impressions of a task: the observed rate."""

    rate: float
    log_loss: float  # its entropy, in nats


def baseline_of(task: str, metrics: Metrics) -> Baseline | None:
    """Return the baseline of a task; None where its impressions are of one class, or there are none."""
    whole, positives = num_of(task, metrics)
    if not 0 < positives < whole:
        return None
    rate = positives / whole
    return Baseline(rate, -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate))


def num_of(task: str, metrics: Metrics) -> tuple[int, int]:
    """Return how many impressions a task is evaluated on, and how many of them are positives."""
    whole = "clicks" if task == "cvr" else "impressions"
    return int(metrics.get(f"num_{whole}") or 0), int(metrics.get(f"num_{POSITIVES[task]}") or 0)


def figure_table(metrics: Metrics, intervals: Mapping[str, Sequence[float]], width: int | None = None) -> list[str]:
    """Return the lines of the table. Columns are left out where a line would be longer than `width`; None keeps all."""
    tasks = [task for task in POSITIVES if f"{task}_auc" in metrics]
    names = ["task", "positives", "AUC", "95 % interval", "GAUC", "log loss", "constant", "calibration", "ECE"]
    rows = [dict(zip(names, names, strict=True))]
    for task in tasks:
        _, positives = num_of(task, metrics)
        interval, baseline = intervals.get(f"{task}_auc"), baseline_of(task, metrics)
        cells = [
            task.upper() if task != "ctcvr_independent" else "CTCVR by ctr_run",
            f"{positives:,}",
            _formatted(metrics.get(f"{task}_auc"), ".4f"),
            f"{interval[0]:.4f}–{interval[1]:.4f}" if interval else "–",
            _formatted(metrics.get(f"{task}_gauc"), ".4f"),
            _formatted(metrics.get(f"{task}_log_loss"), ".5f"),
            _formatted(baseline.log_loss if baseline else None, ".5f"),
            _formatted(metrics.get(f"{task}_calibration"), ".3f"),
            _formatted(metrics.get(f"{task}_ece"), ".2g"),
        ]
        rows.append(dict(zip(names, cells, strict=True)))
    left_out: set[str] = set()
    lines = _lines_with(rows, left_out)
    for name in _LEFT_OUT_FIRST if width else ():
        if max(map(len, lines)) <= (width or 0):
            break
        left_out.add(name)
        lines = _lines_with(rows, left_out)
    return lines


def _lines_with(rows: Sequence[Mapping[str, str]], left_out: set[str]) -> list[str]:
    return text_table([[cell for name, cell in row.items() if name not in left_out] for row in rows])


def _formatted(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
