"""Signals that stop a run: SIGTERM, SIGUSR1 and Ctrl-C, noted here and agreed on by the ranks at the next step.

    signal            after the step that the ranks agree on            exit status
    SIGTERM, SIGUSR1  a checkpoint, and RUN/REQUEUE: start it again     75 (EX_TEMPFAIL: try again)
    Ctrl-C            a checkpoint                                      130

torchrun passes the signals on, but ends with a status of its own: look for the REQUEUE file there. A second Ctrl-C
ends the process at once.
"""

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, reason_of

#: In the run's folder while it has been stopped by a scheduler and waits to be started again.
REQUEUE = "REQUEUE"
EXIT_REQUEUE = os.EX_TEMPFAIL
EXIT_CTRL_C = 128 + signal.SIGINT
_REQUEUES = (signal.SIGTERM, signal.SIGUSR1)


class Interrupts:
    """The signals that this process has received while the block runs."""

    def __init__(self) -> None:
        self.requeue = False
        self.ctrl_c = False
        self._before: dict[int, Any] = {}

    @property
    def stops(self) -> bool:
        """Whether this process was asked to stop."""
        return self.requeue or self.ctrl_c

    def __enter__(self) -> "Interrupts":
        for number in (*_REQUEUES, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.ctrl_c = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        else:
            self.requeue = True


def write_requeue(run: Path, line: str) -> None:
    """Write RUN/REQUEUE with `line`: a signal stopped the run, and it waits to be started again.

    Raises InputError where it cannot.
    """
    try:
        write_whole(run / REQUEUE, line + "\n")
    except OSError as error:
        raise InputError(
            f"{line} But {run / REQUEUE} cannot be written ({reason_of(error)}); start it by hand."
        ) from error


def remove_requeue(run: Path) -> None:
    """Remove RUN/REQUEUE when the run has started again. Raises InputError where it cannot."""
    try:
        (run / REQUEUE).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{run / REQUEUE} cannot be removed ({reason_of(error)}); remove it by hand.") from error
