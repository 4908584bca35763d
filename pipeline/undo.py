"""Ctrl-C and SIGTERM end a job at any moment: one sentence says so, and what it has begun is undone.

    end_on_signals()              the first statement of a job
    with undone_by(remove): …     a signal during the block calls `remove`; any other end of the block does not
    at_signals(remove)            a signal calls `remove` from now on

The handler does all of it itself, ends the processes that this one has started, and raises nothing. A callback of C++ or
of the garbage collector could swallow an exception, and a `finally` of PySpark that waits for the stage could hold it up.
A second signal ends the process at once: by then its default action is back.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
_CHILD_PATIENCE_S = 5.0
_says_so = True
_actions: list[Callable[[], object]] = []  # the latest last


def end_on_signals(speaks: bool = True) -> None:
    """Let Ctrl-C end this process with status 130, SIGTERM with 143 and SIGUSR1 with 138; undo what `undone_by` registers.

    Of several processes that get the signal together, one `speaks`.
    """
    global _says_so
    _says_so = speaks
    for number in _NAMES:
        signal.signal(number, _end)


@contextmanager
def undone_by(action: Callable[[], object]) -> Iterator[None]:
    """Call `action` if a signal ends the process during the block. It may run in the middle of the block's own cleanup."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def at_signals(action: Callable[[], object]) -> None:
    """Call `action` if a signal ends the process, from now on."""
    _actions.append(action)


@contextmanager
def handler_kept() -> Iterator[None]:
    """Keep our handler of Ctrl-C where the block sets one of its own, as PySpark does at the end of a session's start."""
    is_ours = signal.getsignal(signal.SIGINT) is _end
    try:
        yield
    except KeyboardInterrupt:  # by the other handler
        if is_ours:
            _end(signal.SIGINT, None)
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, _end)


def _end_children() -> None:
    """End the processes that this one has started: ask first, for they remove their own temporary files, then kill."""
    children = _children_of(os.getpid())
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, number)
        deadline = time.monotonic() + _CHILD_PATIENCE_S
        while children and time.monotonic() < deadline:
            children = [child for child in children if not _has_ended(child)]
            time.sleep(0.02)


def _end(number: int, _frame: FrameType | None) -> None:
    for each in _NAMES:
        signal.signal(each, signal.SIG_DFL)
    name = _NAMES[signal.Signals(number)]
    with suppress(OSError):  # not print: the signal may have come in the middle of one
        if _says_so:
            os.write(2, f"stopped by {name}; what was not finished is removed: start the job again.\n".encode())
    for action in (_end_children, *reversed(_actions)):
        with suppress(Exception):
            action()
    os._exit(128 + number)


def _children_of(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            # pid (name) state parent …, where the name may hold blanks and brackets
            if int(path.read_text("latin-1").rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
    return found


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:  # somebody else has waited for it
        return True
