"""Standard output and standard error where they cannot be written: a full disk, or a reader that has gone."""

import errno
import os
import sys
from typing import Any, TextIO

from pipeline.errors import InputError, reason_of

#: Exit status of a job that stopped at a mistake of the user or of the input.
EXIT_INPUT = 2


class CheckedOutput:
    """A stream of text. The first write that fails sends the rest nowhere, and raises InputError unless it `is_silent`."""

    def __init__(self, stream: Any, name: str, is_silent: bool) -> None:
        self._stream, self._name, self._is_silent = stream, name, is_silent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # What is still buffered would fail again, at the exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not self._is_silent and error.errno != errno.EPIPE:  # `| head` has read what it wanted
            raise InputError(
                f"{self._name} cannot be written ({reason_of(error)}); send it elsewhere. The files that the job has "
                "written are not affected."
            ) from error


def check_output() -> None:
    """Let a full standard output end the job in one sentence, and a full standard error do nothing."""
    # None: the job was started without one (>&-).
    sys.stdout = CheckedOutput(sys.stdout or _nowhere(), "standard output", is_silent=False)
    sys.stderr = CheckedOutput(sys.stderr or _nowhere(), "standard error", is_silent=True)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
