"""CPU and wall seconds of one command and of every process that it starts, those it leaves behind included.

Two kinds of processes escape a parent that waits for its children. Spark's JVM outlives its driver by a moment: as a
subreaper, this process inherits the JVM and waits for it. Spark's Python workers are waited for by nobody, since their
daemon ignores SIGCHLD: they are read ten times a second, and what a worker uses after the last reading is lost. Linux
only.
"""

import ctypes
import os
import resource
import shlex
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
_MARK = "BENCHMARK_COMMAND"
_EVERY_S = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """The seconds of a command, and what it printed."""

    cpu_s: float
    wall_s: float
    output: str


def cost_of(command: Sequence[str], cwd: Path, environment: dict[str, str], shows: bool = False) -> Cost:
    """Run `command` in `cwd` and return what it and its processes used. Stops this program if the command fails.

    What it prints is kept, or, if it `shows`, seen at once. Waits for all children of this process, so call it while there are no others.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before, started_s = children_cpu_s(), time.monotonic()
    mark = uuid.uuid4().hex
    with _SparkWorkers(mark) as workers:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | environment | {_MARK: mark},
            stdout=None if shows else subprocess.PIPE,
            stderr=None if shows else subprocess.STDOUT,
            text=True,
            check=False,
        )
        wall_s = time.monotonic() - started_s
        with suppress(ChildProcessError):  # no child is left
            while True:
                os.wait()
    if done.returncode:
        said = f":\n{done.stdout[-3000:]}" if done.stdout else "; its own message stands above."
        raise SystemExit(f"{shlex.join(command)} in {cwd} ended with status {done.returncode}{said}")
    return Cost(children_cpu_s() - before + workers.cpu_s, wall_s, done.stdout or "")


def children_cpu_s() -> float:
    """Return user and system time of all processes that this one has waited for, and of those that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parent_and_cpu_s(stat: str) -> tuple[int, float]:
    """Read the parent, and user and system time, in the text of a /proc/<pid>/stat."""
    words = stat.rsplit(")", 1)[1].split()  # the name before may hold blanks and parentheses
    return int(words[1]), (int(words[11]) + int(words[12])) / _TICKS


class _SparkWorkers:
    """Watches the Python workers of Spark that inherited `mark`, as long as the block lasts."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{_MARK}={mark}".encode()
        self._seconds: dict[int, float] = {}  # of each process id, at the last reading
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_SparkWorkers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        return sum(self._seconds.values())

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._seconds |= dict(self._readings())

    def _readings(self) -> Iterator[tuple[int, float]]:
        """Yield (process id, CPU seconds) of the workers. Their parent is the daemon, whose command line is the same."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended
                if b"spark.daemon" in (folder / "cmdline").read_bytes():
                    parent, cpu_s = parent_and_cpu_s((folder / "stat").read_text())
                    is_worker = b"spark.daemon" in Path(f"/proc/{parent}/cmdline").read_bytes()
                    if is_worker and self._mark in (folder / "environ").read_bytes():
                        yield int(folder.name), cpu_s
