"""The progress of a run: a progress bar or plain lines, RUN/log.jsonl, and TensorBoard scalars."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import telemetry
from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, reason_of, with_addresses
from pipeline.terminal import open_bar
from training.checkpoint.meta import LogWindow, ValidationState
from training.run.event_file import EventFile
from training.run.mlflow_sync import BackgroundSync
from training.run.settings import LogSettings
from training.run.validation import best_of

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
#: A line on stderr that begins with this word says that a model is no good.
ALERT = "ALERT"


@dataclass(frozen=True)
class LoggedStep:
    """A step of training, as the log takes it."""

    epoch: int
    steps_done: int  # of the run, this step included
    losses: Sequence[float]  # the mean of each over the global batch
    count: int  # of the global batch: impressions, or clicks for a model that trains on them
    learning_rates: Mapping[str, float]
    gradient_norm: Tensor  # of the towers over the global batch, before clipping, on the device


class Journal:
    """The log of a run, written by rank 0 alone; its losses are those of the global batch.

    `loss_weights` has the losses' names, and `window` what a stopped run had not yet logged. Raises InputError where a
    file of the log cannot be read or written.
    """

    def __init__(
        self,
        run: Path,
        settings: LogSettings,
        loss_weights: Mapping[str, float],
        steps_done: int,
        num_steps: int,
        window: LogWindow | None = None,
    ) -> None:
        self.settings, self.loss_weights, self.num_steps = settings, dict(loss_weights), num_steps
        self._run = run
        try:
            _forget_after(run / LOG, steps_done)
            self._log = (run / LOG).open("a", encoding="utf-8")
            self._events = EventFile(run / TENSORBOARD, steps_done)
        except OSError as error:
            raise self._not_written(error) from error
        self._bar = open_bar("training", num_steps, " steps", steps_done, keep=True)
        self._norms: Tensor | None = None
        self._impressions = 0  # of this start of the run
        self._start_window(0.0)
        if window:
            self._sums, self._steps = list(window.loss_sums), window.num_steps
            self._norms = torch.tensor(math.nan if window.norm_sum is None else window.norm_sum, dtype=torch.float64)
        self._last_line_s = time.monotonic()
        self._mlflow = BackgroundSync(run, settings.mlflow, settings.mlflow_experiment) if settings.mlflow else None
        self._is_finished = False
        #: Why the journal can no longer be written; the run stops for it at the next step, on all ranks.
        self.error: InputError | None = None

    def _start_window(self, wait_s: float) -> None:
        self._since_s, self._wait_s = time.monotonic(), wait_s
        self._sums, self._steps = [0.0] * len(self.loss_weights), 0
        self._norms = None
        self._count, self._timed_steps = 0, 0  # since this start of the run

    @property
    def window(self) -> LogWindow | None:
        """The sums of the steps that no entry has yet, for a checkpoint; None where there are none."""
        if self._norms is None:
            return None
        norm = float(self._norms)
        return LogWindow(self._steps, tuple(self._sums), norm if math.isfinite(norm) else None)

    def step(self, step: LoggedStep, wait_s: float) -> None:
        """Count a step; `wait_s` is all time that this start of the run has spent waiting for data."""
        self._is_finished = step.steps_done >= self.num_steps
        self._bar.update(1)
        self._sums = [total + loss for total, loss in zip(self._sums, step.losses, strict=True)]
        # Summed where it is, and read with the entry: reading it at every step would wait for the device.
        norm = step.gradient_norm.detach().double()
        self._norms = norm if self._norms is None else self._norms.to(norm.device) + norm
        self._steps += 1
        self._timed_steps += 1
        self._count += step.count
        if self._steps >= self.settings.every_steps or step.steps_done == self.num_steps:
            self._write(step.epoch, step.steps_done, step.learning_rates, wait_s)

    def end_early(self, epoch: int, steps_done: int, learning_rates: Mapping[str, float], wait_s: float) -> None:
        """Log the steps that no entry has yet: the run ends before its last step."""
        if self._timed_steps:
            self._write(epoch, steps_done, learning_rates, wait_s)

    def validated(
        self, epoch: int, state: ValidationState, figures: Mapping[str, float | None], stops_early: bool
    ) -> None:
        """Log the figures of a validation, each as validation_<name>, and the best one up to it."""
        entry: dict[str, Any] = {"epoch": epoch, "step": state.total_steps}
        entry |= {f"validation_{name}": value for name, value in figures.items()}
        best_step = None if state.best is None else state.best_steps
        entry |= {"best_metric": state.metric, "best_value": state.best, "best_step": best_step}
        self._append(entry | ({"stops_early": True} if stops_early else {}))
        self._is_finished |= stops_early
        shown = [f"{name} {'undefined' if value is None else f'{value:.4f}'}" for name, value in figures.items()]
        self.say(f"validation after step {state.total_steps}: {' · '.join(shown)} · {best_of(state)}")

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._bar.disable:
            say(line)
        else:
            self._bar.write(with_addresses(line), file=sys.stderr)

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._log.write(json.dumps(entry) + "\n")
            self._log.flush()
            self._events.write(entry["step"], {name: entry[name] for name in entry if _is_scalar(name, entry[name])})
        except OSError as error:
            self.error = self._not_written(error)

    def _not_written(self, error: OSError) -> InputError:
        return InputError(
            f"{self._run / LOG} or {self._run / TENSORBOARD} cannot be written ({reason_of(error)}); make room there, or "
            "make it writable, and run the same command again: it resumes from the last checkpoint."
        )

    def _write(self, epoch: int, steps_done: int, learning_rates: Mapping[str, float], wait_s: float) -> None:
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        means = {name: total / self._steps for name, total in zip(self.loss_weights, self._sums, strict=True)}
        norm = float(self._norms) / self._steps if self._norms is not None else math.nan
        entry: dict[str, Any] = {
            "epoch": epoch,
            "step": steps_done,
            "loss": sum(self.loss_weights[name] * mean for name, mean in means.items()),
            **{f"loss_{name}": mean for name, mean in means.items()},
            **{f"learning_rate_{name}": rate for name, rate in learning_rates.items()},
            "gradient_norm_towers": norm if math.isfinite(norm) else None,
            "impressions_per_s": self._count / elapsed_s,
            "waiting_share": (wait_s - self._wait_s) / elapsed_s,
        }
        self._append(entry)
        self._impressions += self._count
        telemetry.set_figures(
            {
                "impressions_total": self._impressions,
                "impressions_per_second": entry["impressions_per_s"],
                "waiting_share": entry["waiting_share"],
                "loss": entry["loss"],
                "step": steps_done,
                "steps": self.num_steps,
            },
            force=steps_done == self.num_steps,
        )
        shown = " · ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        text = f"{shown} · {entry['impressions_per_s']:,.0f} impressions/s · waiting {entry['waiting_share']:.1%}"
        # On a bar there is room for the sum of the losses alone.
        self._bar.set_postfix_str(f"loss {entry['loss']:.4f}, {entry['impressions_per_s']:,.0f}/s", refresh=False)
        now_s = time.monotonic()
        due = now_s - self._last_line_s >= self.settings.line_every_s or steps_done == self.num_steps
        if self._bar.disable and due:
            left_s = (self.num_steps - steps_done) * elapsed_s / self._timed_steps
            say(f"epoch {epoch} · step {steps_done}/{self.num_steps} · {text} · {left_s:,.0f} s left")
            self._last_line_s = now_s
        self._start_window(wait_s)

    def close(self) -> None:
        """Flush and close what is open."""
        self._bar.close()
        for file in (self._log, self._events):
            with contextlib.suppress(OSError):  # of what it could not write before either
                file.close()
        if self._mlflow:
            self._mlflow.close(self._is_finished)


def _is_scalar(name: str, value: Any) -> bool:
    """Tell what TensorBoard draws: numbers, but not the position, which is the axis."""
    return name not in ("epoch", "step") and type(value) in (int, float)


def say(line: str) -> None:
    """Print one line on stderr."""
    print(with_addresses(line), file=sys.stderr, flush=True)


def _forget_after(path: Path, steps_done: int) -> None:
    """Drop the entries of steps that a resumed run takes again, and a line that a kill cut short."""
    if not path.exists():
        return
    if not path.is_file():  # a pipe or a device has no end
        raise InputError(f"{path} is no regular file; remove it, and run the same command again.")
    lines = path.read_bytes().splitlines(keepends=True)
    write_whole(path, b"".join(line for line in lines if _is_kept(line, steps_done)))


def _is_kept(line: bytes, steps_done: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= steps_done) and line.endswith(b"\n")
    except (ValueError, KeyError, TypeError):
        return False  # cut short
