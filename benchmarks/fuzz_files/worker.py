"""A process that reads damaged files and has a deadline for each; when it hangs or ends, it is killed and another takes its place."""

import multiprocessing
import os
import resource
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.fuzz_files import inputs
from benchmarks.fuzz_files.damage import restore
from benchmarks.fuzz_files.judging import CRASH, HANG, Undisturbed, Verdict, choose, damaged_file, judge, undisturbed
from benchmarks.fuzz_files.reading import Kind

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.fuzz_files.kinds"])
#: Folders of `work`: what is damaged, and what it is restored from.
FILES, PRISTINE = "files", "pristine"
_START_S = 300.0  # torch is loaded, a model built
_MORE_BYTES = 4 << 30  # of address space beyond what a worker has when it begins: a bomb is to hit it, not the host


class Worker:
    """One process at a time, which damages files below `work` and judges their readers."""

    def __init__(self, work: Path, kinds: Sequence[Kind], deadline_s: float) -> None:
        self._work, self._kinds, self._deadline_s = work, tuple(kinds), deadline_s
        self._process: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def train(self) -> None:
        """Train the run that all mutations read, and keep the undisturbed files beside."""
        process = CONTEXT.Process(target=_train, args=(self._work,))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the training ended with {process.exitcode}")

    def judge(self, seed: int) -> tuple[str, str, Verdict]:
        """Damage a file as `seed` says and judge its readers; return the file, the damage and the verdict."""
        pipe = self._pipe or self._start()
        pipe.send(seed)
        damaged, limit_s = ("", ""), self._deadline_s
        while True:
            if not pipe.poll(limit_s):
                self._stop()
                return *damaged, Verdict(HANG, "", f"no answer within {self._deadline_s:g} s")
            try:
                message = pipe.recv()
            except (EOFError, ConnectionResetError):
                self._process.join()
                verdict = Verdict(CRASH, "", f"the process ended with {self._process.exitcode}")
                self._stop()
                return *damaged, verdict
            if isinstance(message, Verdict):
                return *damaged, message
            damaged = message

    def _start(self) -> Connection:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_work, args=(theirs, self._work, self._kinds))
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_START_S) or self._pipe.recv() != "ready":
            raise RuntimeError("the undisturbed files cannot be read")
        return self._pipe

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process, self._pipe = None, None


def _train(work: Path) -> None:
    inputs.train(work / FILES)
    restore(work / FILES, work / PRISTINE)


def _work(pipe: Connection, work: Path, kinds: tuple[Kind, ...]) -> None:
    """Judge one mutation after another, each on files that are undisturbed before it."""
    folder, pristine = work / FILES, work / PRISTINE
    os.chdir(work)
    known: dict[Kind, Undisturbed] = {}
    restore(pristine, folder)
    for kind in kinds:
        readings = undisturbed(kind, folder)
        fallbacks = readings
        if kind.fall_back:
            kind.fall_back(folder)
            fallbacks = undisturbed(kind, folder)
        restore(pristine, folder)
        known[kind] = Undisturbed(readings, fallbacks)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + _MORE_BYTES, resource.RLIM_INFINITY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries warn of damaged files
    pipe.send("ready")
    while True:
        kind, draw = choose(kinds, pipe.recv())
        pipe.send(damaged_file(kind, folder, draw))
        verdict = judge(kind, folder, known[kind])
        restore(pristine, folder)
        pipe.send(verdict)
