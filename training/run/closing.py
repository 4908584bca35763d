"""What jobs.train says at its end."""

import sys
from pathlib import Path

import numpy as np

from pipeline.terminal import close_job, command_of, styled
from training.checkpoint.meta import ValidationState
from training.evaluation.health import diverged_losses
from training.evaluation.run_files import read_log
from training.run.journal import ALERT, LOG, say
from training.run.validation import best_of


def say_trained(run: Path, model: str, seconds: float, validation: ValidationState | None) -> None:
    """Say on stderr what was trained, its loss, its speed and its best validation, and the command that evaluates it."""
    log, _ = read_log(run / LOG)
    numbers = []
    if log:
        speed = float(np.median([entry.get("impressions_per_s", np.nan) for entry in log]))
        numbers = [f"{int(log[-1]['step']):,} steps", f"loss {log[-1]['loss']:.4f}", f"{speed:,.0f} impressions/s"]
    for alert in diverged_losses(log):
        say(f"{styled(ALERT, 'red', sys.stderr)} {alert.text}")
    best = validation if validation and validation.best is not None else None
    close_job(
        f"trained {model}",
        str(run),
        seconds,
        numbers,
        following=command_of("jobs.evaluate", f"run={run}", "split=test"),
        stream=sys.stderr,
    )
    if best:
        say(f"The checkpoint of the {best_of(best)}, is kept; checkpoint=best evaluates it.")
