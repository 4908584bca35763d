"""All jobs in a loop, killed in every way at random, on a disk that is full now and then.

    python -m benchmarks.soak [minutes=30] [seed=1] [impressions=4000]

Each round runs jobs.preprocess, train (two ranks), evaluate and score. A job may get SIGKILL, SIGTERM or Ctrl-C, or lose a
process that it has started, at a random moment; some rounds are on a small disk, which is full until a job has said so. What
does not end with status 0 is started again with the same command, as a scheduler does. At the end of a round the dataset, the
checkpoint, the figures and the scores must be those of an undisturbed round, byte for byte, no process may be left, and every
start must be accounted for.

Beside it a resident process does the same work in itself, round after round (`benchmarks.soak_resident`): its open files, threads
and memory must not grow. Exits with status 1 if anything does not hold. Needs root, for the small disk.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_support import remount, small_disk
from benchmarks.standalone import ROOT, descendants
from training.checkpoint.files import checkpoint_paths
from training.checkpoint.meta import META_FILE

JOBS = ("preprocess", "train", "evaluate", "score")
DISTURBANCES = ("nothing", "SIGKILL", "SIGTERM", "Ctrl-C", "SIGKILL of a child")
SMALL_DISK_SHARE, MOST_STARTS, PAUSE_S, HANG_S = 0.3, 40, 1.0, 300.0
#: What the resident process uses is compared from behind its first rounds on, which needs two more.
WARM_UP_ROUNDS, LEAST_ROUNDS = 2, 4
_MARK = "ENTIRESPACE_SOAK"
_SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
#: Statuses with which a disturbed job may end: its own, those of signals, and the one of an error message.
_STATUSES = (0, 2, 75, 130, 138, 143, 137, -9, -2, -15)


@dataclass
class Books:
    """Every start, and how it ended."""

    starts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def balance(self) -> bool:
        """Tell whether each start has one end, and nothing went wrong."""
        return sum(self.starts.values()) == sum(self.ends.values()) and not self.wrong


@dataclass
class Soak:
    """The raw log, where the rounds are made, and what an undisturbed one gave."""

    directory: Path
    draw: random.Random
    books: Books = field(default_factory=Books)
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    waits: int = 0
    full_disks: int = 0
    resident: set[int] = field(default_factory=set)  # the processes of `Resident`

    @property
    def place(self) -> Path:
        """The folder of every round: scores name the run by its path."""
        return self.directory / "round"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of all jobs: a mark to find what they leave, and a folder for their temporary files."""
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        mark = {_MARK: str(self.directory), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return os.environ | mark

    def command(self, job: str) -> list[str]:
        """Return the command of a job of a round."""
        dataset, run, scores = (f"{self.place}/{name}" for name in ("dataset", "run", "scores"))
        words = {
            "preprocess": [f"source.path={self.directory}/raw", f"out={dataset}", "source.split_bytes=500000",
                           "rows.impressions_per_file=1000"],
            "train": [f"data={dataset}", f"out={run}", "ranks=2", "plan.batch_size=100", "plan.lanes=2", "epochs=2",
                      "model.towers.hidden=[16]", "checkpoint.every_steps=7", "log.every_steps=1", "world.timeout_s=30"],
            "evaluate": [f"run={run}", "split=test"],
            "score": [f"run={run}", f"data={dataset}", "split=test", f"out={scores}"],
        }  # fmt: skip
        return [sys.executable, "-m", f"jobs.{job}", *words[job]]

    def result(self, job: str) -> Any:
        """Return what a job has made, as far as it must be the same in every round; None where it is not there."""
        with suppress(FileNotFoundError, IndexError):
            if job == "preprocess":
                return (self.place / "dataset" / "manifest.json").read_bytes()
            if job == "train":
                newest = checkpoint_paths(self.place / "run")[0]
                return newest.name, json.loads((newest / META_FILE).read_text())["files"]
            if job == "evaluate":
                return json.loads((self.place / "run" / "metrics.test.json").read_text())
            return (self.place / "scores" / "scores.json").read_bytes()
        return None

    def run_undisturbed(self) -> None:
        """Make the round that all others are compared with."""
        self.place.mkdir()
        for job in JOBS:
            begun_s = time.monotonic()
            subprocess.run(self.command(job), cwd=ROOT, env=self.environment, check=True, capture_output=True)
            self.seconds[job] = time.monotonic() - begun_s
            self.expected[job] = self.result(job)
            assert self.expected[job] is not None, job
        shutil.rmtree(self.place)

    def round(self) -> None:
        """Make one round, and compare it."""
        is_small = self.draw.random() < SMALL_DISK_SHARE
        size = f"{self.draw.randrange(200, 1500)}k"
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.place, ignore_errors=True)
            stack.enter_context(small_disk(self.place, size) if is_small else nullcontext())
            self.place.mkdir(exist_ok=True)
            for job in JOBS:
                self._finish(job, is_small)
                if (found := self.result(job)) != self.expected[job]:
                    self.books.wrong.append(f"{job} made something else: {str(found)[:300]}")
            self._await_no_process()

    def _finish(self, job: str, is_small: bool) -> None:
        """Start a job until it ends with status 0; only the first starts are disturbed."""
        for number in range(MOST_STARTS):
            what = self.draw.choice(DISTURBANCES) if number < 2 else "nothing"
            status, said = self._start(job, what)
            self.books.ends[f"{job}: {what}, status {status}"] += 1
            if "Traceback" in said and what == "nothing":
                self.books.wrong.append(f"{job} ended with a traceback: {said[-800:]}")
            if status == 0:
                return
            if status not in _STATUSES:
                self.books.wrong.append(f"{job} after {what} ended with status {status}: {said[-800:]}")
            if is_small and "No space left" in said:
                self.full_disks += 1
                remount(self.place, "size=256m")
            self.waits += "already" in said or "being written" in said
            time.sleep(PAUSE_S)
        self.books.wrong.append(f"{job} was not done after {MOST_STARTS} starts: {said[-800:]}")

    def _start(self, job: str, what: str) -> tuple[int, str]:
        self.books.starts[job] += 1
        with tempfile.TemporaryFile(dir=self.directory) as output:
            process = subprocess.Popen(self.command(job), cwd=ROOT, env=self.environment, stdout=output, stderr=output)
            if what != "nothing":
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.draw.uniform(0, self.seconds[job]))
                self._disturb(process, what)
            try:
                status = process.wait(HANG_S)
            except subprocess.TimeoutExpired:
                self.books.wrong.append(f"{job} after {what} did not end within {HANG_S:g} s")
                process.kill()
                status = process.wait()
            output.seek(0)
            return status, output.read().decode(errors="replace")

    def _disturb(self, process: "subprocess.Popen[bytes]", what: str) -> None:
        with suppress(ProcessLookupError):
            if what in _SIGNALS:
                process.send_signal(_SIGNALS[what])
            elif children := descendants(process.pid):
                os.kill(self.draw.choice(children), signal.SIGKILL)

    def _await_no_process(self, patience_s: float = 60.0) -> None:
        """Wait until no process of the jobs is left; name and end what stays."""
        deadline_s = time.monotonic() + patience_s
        while (left := self.left()) and time.monotonic() < deadline_s:
            time.sleep(0.5)
        for pid, line in left.items():
            self.books.wrong.append(f"left behind: {line[:200]}")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left(self) -> dict[int, str]:
        """Return the processes of the jobs that are there: id → command line."""
        mark, found = f"{_MARK}={self.directory}".encode(), {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if line and "soak_resident" not in line and int(path.name) not in self.resident:
                        found[int(path.name)] = line
        return found


class Resident:
    """The process that does all the work in itself, and what it measured of itself after each round."""

    def __init__(self, soak: Soak) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.soak_resident",
            str(soak.directory / "raw"),
            str(soak.directory / "resident"),
        ]
        self._soak, self.seen = soak, list[dict[str, float]]()
        self._said = (soak.directory / "resident.txt").open("w+b")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=soak.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def round(self) -> None:
        """Let it do one round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        self._soak.resident = {self._process.pid, *descendants(self._process.pid)}
        if not line:
            self._said.seek(0)
            raise RuntimeError(f"the resident process has ended: {self._said.read()[-2000:]!r}")
        self.seen.append(json.loads(line))

    def close(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=120)
        self._said.close()

    def growth(self) -> list[str]:
        """List what has grown since the first rounds."""
        seen = self.seen[WARM_UP_ROUNDS:]
        first, last = seen[0], seen[-1]
        found = [
            f"{name}: {first[name]:g} → {last[name]:g}"
            for name in ("open_files", "threads")
            if last[name] > first[name] + 2
        ]
        most_mb = max(40.0, 0.05 * first["memory_mb"])
        if last["memory_mb"] > first["memory_mb"] + most_mb:
            found.append(f"memory: {first['memory_mb']:.0f} → {last['memory_mb']:.0f} MB")
        return found


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    minutes, seed = float(given.get("minutes", 30)), int(given.get("seed", 1))
    directory = Path(tempfile.mkdtemp(prefix="entirespace-soak-"))
    soak = Soak(directory, random.Random(seed))
    try:
        simulate = [sys.executable, "-m", "jobs.simulate", f"out={directory}/raw", f"impressions={given.get('impressions', 4000)}", f"seed={seed}"]  # fmt: skip
        subprocess.run(simulate, cwd=ROOT, env=soak.environment, check=True, capture_output=True)
        soak.run_undisturbed()
        print(
            "undisturbed: " + ", ".join(f"{job} {seconds:.0f} s" for job, seconds in soak.seconds.items()), flush=True
        )
        resident = Resident(soak)
        deadline_s, number = time.monotonic() + 60 * minutes, 0
        while time.monotonic() < deadline_s or number < LEAST_ROUNDS:
            number += 1
            resident.round()
            soak.round()
            now = ", ".join(f"{name} {value:g}" for name, value in resident.seen[-1].items())
            starts = sum(soak.books.starts.values())
            print(
                f"round {number}: {starts} starts, {len(soak.books.wrong)} wrong; the resident process: {now}",
                flush=True,
            )
        resident.close()
        for what, count in sorted(soak.books.ends.items()):
            print(f"{count:>5}  {what}")
        wrong = [*soak.books.wrong, *(f"grows: {line}" for line in resident.growth())]
        starts = sum(soak.books.starts.values())
        print(
            f"{number} rounds, {starts} starts, {sum(soak.books.ends.values())} ends; {soak.full_disks} full disks, {soak.waits} waits for "
            f"a job that was still ending; {len(wrong)} wrong"
        )
        for line in wrong:
            print(f"WRONG: {line}")
        sys.exit(bool(wrong) or not soak.books.balance())
    finally:
        for pid in soak.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
