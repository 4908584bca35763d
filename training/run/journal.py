"""The progress of a run: a progress bar or plain lines, RUN/log.jsonl, and TensorBoard scalars."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError
from training.run.settings import LogSettings

LOG = "log.jsonl"


class Journal:
    """The log of a run, written by rank 0 alone; its losses are those of the global batch."""

    def __init__(
        self, run: Path, settings: LogSettings, losses: Sequence[str], steps_done: int, num_steps: int
    ) -> None:
        self.settings, self.losses, self.num_steps = settings, list(losses), num_steps
        _forget_after(run / LOG, steps_done)
        self._log = (run / LOG).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=steps_done)
        self._bar = tqdm(
            total=num_steps, initial=steps_done, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        self._start_window(0.0)
        self._last_line_s = time.monotonic()
        #: Why the journal can no longer be written; the run stops for it at the next step, on all ranks.
        self.error: InputError | None = None

    def _start_window(self, wait_s: float) -> None:
        self._since_s, self._wait_s = time.monotonic(), wait_s
        self._sums, self._steps, self._count = [0.0] * len(self.losses), 0, 0

    def step(self, epoch: int, steps_done: int, losses: Sequence[float], count: int, wait_s: float) -> None:
        """Count a step: the mean of each loss over the global batch of `count`; `wait_s` is all time spent waiting for data."""
        self._bar.update(1)
        self._sums = [total + loss for total, loss in zip(self._sums, losses, strict=True)]
        self._steps += 1
        self._count += count
        if self._steps >= self.settings.every_steps or steps_done == self.num_steps:
            self._write(epoch, steps_done, wait_s)

    def validated(self, epoch: int, steps_done: int, figures: Mapping[str, float | None]) -> None:
        """Log the figures of a validation, each as validation_<name>."""
        entry = {f"validation_{name}": value for name, value in figures.items()}
        self._append({"epoch": epoch, "step": steps_done, **entry})
        shown = " · ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        self.say(f"validation after step {steps_done}: {shown}")

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._bar.disable:
            say(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._log.write(json.dumps(entry) + "\n")
            self._log.flush()
            for name, value in entry.items():
                if name not in ("epoch", "step") and value is not None:
                    self._board.add_scalar(name, value, entry["step"])
        except OSError as error:
            self.error = InputError(
                f"{self._log.name} cannot be written ({error}); free some space and run the same command again: "
                "it resumes from the last checkpoint."
            )

    def _write(self, epoch: int, steps_done: int, wait_s: float) -> None:
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        means = {name: total / self._steps for name, total in zip(self.losses, self._sums, strict=True)}
        entry: dict[str, Any] = {
            "epoch": epoch,
            "step": steps_done,
            "loss": sum(means.values()),
            **{f"loss_{name}": mean for name, mean in means.items()},
            "impressions_per_s": self._count / elapsed_s,
            "waiting_share": (wait_s - self._wait_s) / elapsed_s,
        }
        self._append(entry)
        shown = " · ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        text = f"{shown} · {entry['impressions_per_s']:,.0f} impressions/s · waiting {entry['waiting_share']:.1%}"
        self._bar.set_postfix_str(text, refresh=False)
        now_s = time.monotonic()
        due = now_s - self._last_line_s >= self.settings.line_every_s or steps_done == self.num_steps
        if self._bar.disable and due:
            left_s = (self.num_steps - steps_done) * elapsed_s / self._steps
            say(f"epoch {epoch} · step {steps_done}/{self.num_steps} · {text} · {left_s:,.0f} s left")
            self._last_line_s = now_s
        self._start_window(wait_s)

    def close(self) -> None:
        """Flush and close what is open."""
        self._bar.close()
        with contextlib.suppress(OSError):  # of what it could not write before either
            self._log.close()
            self._board.close()


def say(line: str) -> None:
    """Print one line on stderr."""
    print(line, file=sys.stderr, flush=True)


def _forget_after(path: Path, steps_done: int) -> None:
    """Drop the entries of steps that a resumed run takes again, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= steps_done:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # cut short
    write_whole(path, "".join(kept))
