"""python -m benchmarks.preprocess_faults [impressions=5000] [seed=1]: jobs.preprocess under every fault we know.

In each row a reader polls the dataset and verifies every file that its manifest names. Then the job runs again, and its
manifest must be that of the undisturbed run, byte for byte. Odd kills of the driver hit a job that replaces
an earlier dataset. In the end the sweep, its grace period over, must leave what the manifest names and nothing else.
Needs root, for the full and the read-only disk.

    python -m benchmarks.preprocess_faults changes=50 [impressions=5000] [seed=1]

changes its inputs instead, at random moments of each job: other content of the same size, a file that grows, is cut or
deleted. Each job must give the manifest of the undisturbed run of what was there before or is there now, or one error
message that names the file, and then no manifest.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fault_support import Reader, remount, small_disk
from benchmarks.standalone import ROOT, Standalone, python_workers
from pipeline.dataset.manifest import MANIFEST, load_manifest
from pipeline.storage import commit
from pipeline.storage.store import store_of

NUM_KILLS, NUM_KILLS_OF_COMMIT = 10, 3
_WAIT_S = 600
_OURS = {MANIFEST, commit.AUDIT, commit.AUDIT_PAGE, commit.RUN}


@dataclass
class Row:
    """A fault, what a reader saw of it, and what the rerun gave."""

    fault: str
    moment_s: float | None = None
    status: str = ""
    polls: int = 0
    generations: int = 0
    half: int = 0
    same: bool = False
    left_over: int = -1
    said: str = ""

    def __str__(self) -> str:
        moment = "" if self.moment_s is None else f"{self.moment_s:.2f}"
        same = "same" if self.same else "DIFFERS"
        return (
            f"{self.fault:<34} {moment:>7} {self.status:>7} {self.polls:>6} {self.generations:>4} {self.half:>4}  "
            f"{same:<8} {self.left_over:>5}  {self.said}"
        )


HEAD = f"{'fault':<34} {'at s':>7} {'exit':>7} {'polls':>6} {'gen.':>4} {'half':>4}  {'rerun':<8} {'waste':>5}  said"


@dataclass
class Bench:
    """The raw log, the undisturbed runs, and the table so far."""

    directory: Path
    draw: random.Random
    raw: Path
    rows: list[Row] = field(default_factory=list)
    expected: bytes = b""
    earlier: Path = Path()
    run_s: float = 0.0
    commit_s: float = 0.0

    def start(self, out: Path, *overrides: str, **more: str) -> "subprocess.Popen[str]":
        """Start a job."""
        command = [sys.executable, "-m", "jobs.preprocess", f"source.path={self.raw}", f"out={out}",
                   "source.split_bytes=500000", "rows.impressions_per_file=1000", "overwrite=true", *overrides]  # fmt: skip
        environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", **more}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def run_undisturbed(self) -> None:
        """Run without a fault: the expected manifest, an earlier generation to replace, and the seconds of a job and its commit."""
        self.earlier = self.directory / "earlier"
        _finish(self.start(self.earlier, "rows.max_impressions=8"))
        out = self.directory / "undisturbed"
        started, begun_at = time.monotonic(), 0.0
        job = self.start(out)
        while job.poll() is None:
            if not begun_at and (out / "train").exists():
                begun_at = time.monotonic()
            time.sleep(0.005)
        self.run_s, self.commit_s = time.monotonic() - started, time.monotonic() - begun_at
        _finish(job)
        self.expected = (out / MANIFEST).read_bytes()
        print(f"undisturbed: {self.run_s:.1f} s, from the first file in its place {self.commit_s:.2f} s", flush=True)

    def run_disturbed(self, fault: str, disturb: Callable[["subprocess.Popen[str]", Path], float | None], *overrides: str,
                  replacing: bool = False, out: Path | None = None) -> None:  # fmt: skip
        """Measure one row: run, disturb, run again, clean up."""
        out = out or self.directory / f"out{len(self.rows)}"
        if replacing:
            shutil.copytree(self.earlier, out)
        row = Row(fault)
        with Reader(out) as reader:
            job = self.start(out, *overrides)
            row.moment_s = disturb(job, out)
            _, said = job.communicate(timeout=_WAIT_S)
            row.status, row.said = _status(job.returncode), _error_message(said)
            self.rerun(row, out)
        row.polls, row.generations, row.half = reader.polls, len(reader.generations), len(reader.faults)
        row.left_over = waste(out)
        self.rows.append(row)
        print(row, flush=True)

    def rerun(self, row: Row, out: Path) -> None:
        """Run the same job again, without a fault."""
        _finish(self.start(out))
        row.same = (out / MANIFEST).read_bytes() == self.expected


def waste(out: Path) -> int:
    """Clean up without a grace period; count the files left that nothing names."""
    store = store_of(str(out))
    commit.remove_unnamed_files(store, grace_hours=0)
    named = set(commit.files_named(load_manifest(out))) | _OURS
    return len({path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - named)


def kill_driver_at(moment_s: float) -> Callable[["subprocess.Popen[str]", Path], float]:
    def disturb(job: "subprocess.Popen[str]", out: Path) -> float:
        time.sleep(moment_s)
        job.kill()
        return moment_s

    return disturb


def kill_driver_in_commit(delay_s: float) -> Callable[["subprocess.Popen[str]", Path], float]:
    def disturb(job: "subprocess.Popen[str]", out: Path) -> float:
        before = set((out / "train").glob("*"))
        while set((out / "train").glob("*")) == before and job.poll() is None:
            time.sleep(0.002)
        time.sleep(delay_s)
        job.kill()
        return delay_s

    return disturb


def kill_worker(draw: random.Random) -> Callable[["subprocess.Popen[str]", Path], float | None]:
    def disturb(job: "subprocess.Popen[str]", out: Path) -> float | None:
        started, wanted = time.monotonic(), None
        while job.poll() is None:
            workers = python_workers(job.pid)
            if workers and wanted is None:
                wanted = time.monotonic() + draw.uniform(0, 2)
            if workers and wanted is not None and time.monotonic() >= wanted:
                os.kill(draw.choice(workers), signal.SIGKILL)
                return time.monotonic() - started
            time.sleep(0.2)
        return None

    return disturb


def kill_executor(cluster: Standalone, draw: random.Random) -> Callable[["subprocess.Popen[str]", Path], float | None]:
    def disturb(job: "subprocess.Popen[str]", out: Path) -> float | None:
        started = time.monotonic()
        while not any((out / "_staging").glob("*/*-*")):
            if job.poll() is not None:
                return None
            time.sleep(0.2)
        os.kill(draw.choice(cluster.executors()), signal.SIGKILL)
        return time.monotonic() - started

    return disturb


def full_disk(bench: Bench) -> None:
    with small_disk(bench.directory / "full", "400k") as disk:

        def disturb(job: "subprocess.Popen[str]", out: Path) -> None:
            job.wait(timeout=_WAIT_S)
            remount(disk, "size=64m")

        bench.run_disturbed("full disk (400 KB)", disturb, out=disk / "out")


def read_only_disk(bench: Bench) -> None:
    with small_disk(bench.directory / "ro", "64m") as disk:
        remount(disk, "ro")

        def disturb(job: "subprocess.Popen[str]", out: Path) -> None:
            job.wait(timeout=_WAIT_S)
            remount(disk, "rw")

        bench.run_disturbed("read-only disk", disturb, out=disk / "out")


def foreign_lock(bench: Bench) -> None:
    out = bench.directory / "foreign"
    out.mkdir()
    (out / "_lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": "noon"}))

    def disturb(job: "subprocess.Popen[str]", out: Path) -> None:
        job.wait(timeout=_WAIT_S)
        (out / "_lock").unlink()

    bench.run_disturbed("lock of another host", disturb, out=out)


def two_at_once(bench: Bench) -> None:
    second: list[subprocess.CompletedProcess[str]] = []

    def disturb(job: "subprocess.Popen[str]", out: Path) -> float:
        while not (out / "_lock").exists():
            time.sleep(0.01)
        other = bench.start(out)
        _, said = other.communicate(timeout=_WAIT_S)
        second.append(subprocess.CompletedProcess([], other.returncode, "", said))
        return 0.0

    bench.run_disturbed("a second job at once", disturb)
    row = bench.rows[-1]
    print(
        f"{'  the second':<34} {'':>7} {_status(second[0].returncode):>7}  {_error_message(second[0].stderr)}",
        flush=True,
    )
    row.same = row.same and second[0].returncode == 2


def exchange_content(path: Path, draw: random.Random) -> None:
    """Write other content of the same size: another digit in one of a hundred features."""
    pieces = path.read_bytes().split(b"\x02")
    for place in draw.sample(range(1, len(pieces)), max(1, len(pieces) // 100)):
        pieces[place] = (b"2" if pieces[place][:1] == b"1" else b"1") + pieces[place][1:]
    path.write_bytes(b"\x02".join(pieces))


def grow(path: Path, draw: random.Random) -> None:
    with path.open("ab") as stream:
        stream.write(path.read_bytes()[: draw.randrange(1, 5000)])


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def change_inputs(bench: Bench, num_changes: int) -> int:
    """Run jobs whose inputs change at random moments, print a row of each; return how many ended wrongly."""
    started = time.monotonic()
    _finish(bench.start(bench.directory / "undisturbed"))
    bench.run_s = time.monotonic() - started
    raw, before = bench.raw, (bench.directory / "undisturbed" / MANIFEST).read_bytes()
    print(f"undisturbed: {bench.run_s:.1f} s", flush=True)
    print(f"{'change':<18} {'file':<28} {'at s':>7} {'exit':>5}  {'manifest':<16} said", flush=True)
    num_wrong = 0
    for number in range(num_changes):
        change = (exchange_content, grow, cut, delete)[(0, 0, 1, 2, 0, 3)[number % 6]]
        bench.raw = bench.directory / f"raw{number}"
        shutil.copytree(raw, bench.raw)
        path = bench.raw / bench.draw.choice(sorted(file.name for file in raw.glob("*.csv")))
        moment_s = bench.run_s * bench.draw.uniform(0.1, 1)
        out = bench.directory / f"out{number}"
        job = bench.start(out)
        time.sleep(moment_s)
        change(path, bench.draw)
        _, text = job.communicate(timeout=_WAIT_S)
        said = _error_message(text)
        if job.returncode == 0:
            found = (out / MANIFEST).read_bytes()
            what = "before" if found == before else "now" if found == _manifest_of(bench, number) else "A MIXTURE"
        else:
            is_right = job.returncode == 2 and str(path) in said and not (out / MANIFEST).exists()
            what = "none" if is_right and "Traceback" not in text else "none, WRONGLY"
        num_wrong += what not in ("before", "now", "none")
        print(
            f"{change.__name__:<18} {path.name:<28} {moment_s:>7.2f} {job.returncode:>5}  {what:<16} {said}", flush=True
        )
        shutil.rmtree(bench.raw)
        shutil.rmtree(out, ignore_errors=True)
    print(f"{num_changes} changes, {num_wrong} with a wrong outcome", flush=True)
    return num_wrong


def _manifest_of(bench: Bench, number: int) -> bytes:
    """Run the job on the files that are there now; b"" if it refuses them."""
    out = bench.directory / f"now{number}"
    bench.start(out).communicate(timeout=_WAIT_S)
    return (out / MANIFEST).read_bytes() if (out / MANIFEST).exists() else b""


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    impressions, seed = int(given.get("impressions", 5000)), int(given.get("seed", 1))
    num_changes = int(given.get("changes", 0))
    directory = Path(tempfile.mkdtemp(prefix="entirespace-faults-"))
    try:
        raw = directory / "raw"
        simulate = [sys.executable, "-m", "jobs.simulate", f"out={raw}", f"impressions={impressions}", f"seed={seed}"]
        subprocess.run(simulate, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bench = Bench(directory, random.Random(seed), raw)
        if num_changes:
            sys.exit(bool(change_inputs(bench, num_changes)))
        bench.run_undisturbed()
        print(HEAD, flush=True)
        for _ in range(NUM_KILLS_OF_COMMIT):
            delay_s = bench.draw.uniform(0, bench.commit_s)
            bench.run_disturbed("SIGKILL of the driver in its commit", kill_driver_in_commit(delay_s), replacing=True)
        for number in range(NUM_KILLS):
            moment_s = bench.run_s * (number + bench.draw.random()) / NUM_KILLS
            what = "driver, replacing a dataset" if number % 2 else "driver"
            bench.run_disturbed(f"SIGKILL of the {what}", kill_driver_at(moment_s), replacing=bool(number % 2))
        bench.run_disturbed("SIGKILL of a Python worker", kill_worker(bench.draw))
        with Standalone(directory / "cluster") as cluster:
            on_cluster = cluster.overrides(cluster.conf({}))
            bench.run_disturbed("SIGKILL of an executor of two", kill_executor(cluster, bench.draw), *on_cluster)
        for case in (full_disk, read_only_disk, foreign_lock, two_at_once):
            case(bench)
        bad = [row for row in bench.rows if row.half or not row.same or row.left_over]
        polls = sum(row.polls for row in bench.rows)
        print(f"{len(bench.rows)} faults, {polls:,} readings, {len(bad)} with a wrong outcome", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(bool(bad))


def _finish(job: "subprocess.Popen[str]") -> None:
    _, said = job.communicate(timeout=_WAIT_S)
    if job.returncode:
        raise RuntimeError(f"a job that nothing disturbed ended with {job.returncode}: {said}")


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else str(code)


def _error_message(said: str) -> str:
    return next((line for line in said.splitlines() if line.startswith("error: ")), "")


if __name__ == "__main__":
    main()
