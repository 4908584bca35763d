"""SIGKILL of ranks at random moments, under automatic restart: the bits of an undisturbed run, and nobody left behind.

    python -m benchmarks.train_faults [kills=50] [seed=1]

Runs of two ranks on a tiny dataset. In each run one rank is killed while the ranks join, at the first step, while a checkpoint is
written, in a validation and at the end; then the run comes to its end. Even runs restart by `torchrun --max-restarts`, odd
ones by the same command again, as a scheduler's requeue does. A line a run: the moments, the starts, whether the final
checkpoint has the undisturbed run's bits and each step its impressions, the processes of the session that are left, and the
longest time from a start to its first step or end. Exits with status 1 if anything differs, is left, or does not come to
an end within two minutes.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.torchrun_runs import LOOK_S, Run, ranks_of
from training.checkpoint.files import folder as checkpoints_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))  # where the tiny dataset is

from tiny_dataset import write_tiny_dataset

RANKS, EPOCHS, VALIDATE_EVERY, MOST_RESTARTS = 2, 2, 7, 20
MOMENTS = ("joining", "first step", "checkpointing", "validation", "end")
START_S = 120.0  # in which every start comes to its first step, or ends
_SETTINGS = (
    f"epochs={EPOCHS}", "plan.batch_size=16", "plan.lanes=2", "model.towers.hidden=[8]", "model.towers.dropout=0.3", "world.timeout_s=20",
    "checkpoint.every_steps=5", f"validation.every_steps={VALIDATE_EVERY}", "log.every_steps=1",
)  # fmt: skip


class NoEnd(Exception):
    """A start came neither to its first step nor to an end."""


@dataclass
class Campaign:
    """One run that is killed again and again, and what was seen of it."""

    run: Run
    by_torchrun: bool
    last_step: int
    join_s: float  # of the undisturbed run
    draw: random.Random
    starts: int = 0
    longest_s: float = 0.0
    killed: list[str] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def kill(self, moments: list[str]) -> None:
        """Kill a rank at each of `moments`, one a start; then let the run come to its end."""
        process = self._start()
        for moment in moments:
            while not self._kill_at(moment, process) and process.poll() is None:
                continue
            if not self.by_torchrun:
                self.run.finish(process)
                process = self._start()
        if self._wait_for_start(process):
            self.run.finish(process)
        while self.run.started[-1].status and self.starts <= MOST_RESTARTS:  # the last kill was torchrun's own end
            self.run.finish(self._start())

    def left(self) -> list[str]:
        """List the processes that are still there: of the session of a torchrun, or of the one that it gave a rank."""
        time.sleep(0.5)
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = path.read_text().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, _, _, session = rest.split()[:4]
            if int(session) in (*self.sessions, *self._seen) and state != "Z":
                found.append(name)
        return found

    def end(self) -> None:
        """Kill every process of the campaign that is still there."""
        for pid in (*self.sessions, *self._seen):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self) -> "subprocess.Popen[bytes]":
        restarts = MOST_RESTARTS if self.by_torchrun else 0
        process = self.run.start(RANKS, "--max-restarts", str(restarts))
        self.sessions.append(process.pid)
        return process

    def _kill_at(self, moment: str, process: "subprocess.Popen[bytes]") -> bool:
        """Kill a rank of the next start at `moment`; False where that start has ended before it."""
        ranks = self._ranks_of_start(process)
        if not ranks:
            return False
        before, begun_s = self._traced_bytes(), time.monotonic()
        if moment == "joining":
            until_s = begun_s + self.draw.uniform(0, self.join_s)
            while time.monotonic() < until_s and self._traced_bytes() == before:
                time.sleep(LOOK_S)
        else:
            while not self._is_at(moment, before):
                if process.poll() is not None or ranks_of(process) != ranks:
                    return False
                self._check_start(before, begun_s)
                time.sleep(LOOK_S / 5)
            time.sleep(self.draw.uniform(0, 0.1))
        target = self.draw.randrange(RANKS)
        try:
            os.kill(ranks[target], signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed.append(f"{moment} (rank {target})")
        return True

    def _is_at(self, moment: str, before: int) -> bool:
        if self._traced_bytes() == before:
            return False
        step = int(_last_line(self._trace).split()[0])
        if moment == "checkpointing":
            return any(checkpoints_of(self.run.out).glob(".step-*.tmp"))
        if moment == "validation":
            return (step + 1) % VALIDATE_EVERY == 0
        return moment == "first step" or step >= self.last_step

    def _wait_for_start(self, process: "subprocess.Popen[bytes]") -> bool:
        """Wait until the last start is on its way; False where there is none any more."""
        ranks, begun_s, before = self._ranks_of_start(process), time.monotonic(), self._traced_bytes()
        while ranks and process.poll() is None and self._traced_bytes() == before:
            self._check_start(before, begun_s)
            time.sleep(LOOK_S)
        return True

    def _check_start(self, before: int, begun_s: float) -> None:
        if self._traced_bytes() == before:
            self.longest_s = max(self.longest_s, time.monotonic() - begun_s)
            if self.longest_s > START_S:
                raise NoEnd(f"{self.run.out.name}: a start has not come to a step within {START_S:g} s")

    def _ranks_of_start(self, process: "subprocess.Popen[bytes]") -> list[int]:
        """Wait for ranks that were not seen before; none where the process ends without."""
        begun_s = time.monotonic()
        while process.poll() is None:
            ranks = ranks_of(process)
            if len(ranks) == RANKS and not self._seen & set(ranks):
                self._seen |= set(ranks)
                self.starts += 1
                return ranks
            if time.monotonic() - begun_s > START_S:
                raise NoEnd(f"{self.run.out.name}: no new ranks within {START_S:g} s")
            time.sleep(LOOK_S)
        return []

    @property
    def _trace(self) -> Path:
        return self.run.trace / "rank-0.txt"

    def _traced_bytes(self) -> int:
        return self._trace.stat().st_size if self._trace.exists() else 0


def _last_line(path: Path) -> str:
    return path.read_text().splitlines()[-1]


def main() -> None:
    """Run the campaigns; exit with status 1 if anything does not hold."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    kills, draw = int(options.get("kills", 50)), random.Random(int(options.get("seed", 1)))
    counts: Counter[str] = Counter()
    all_hold = True
    with tempfile.TemporaryDirectory(prefix="entirespace-train-faults-") as name:
        work = Path(name)
        write_tiny_dataset(work / "data", num_contexts=150)
        whole, begun_s = Run(work / "undisturbed", work / "data", _SETTINGS), time.monotonic()
        process = whole.start(RANKS)
        assert whole.reach(0, process), whole.stderr.read_text()
        join_s = time.monotonic() - begun_s
        assert whole.finish(process).status == 0, whole.stderr.read_text()
        last_step = len(whole.batches()) - 1
        print(f"undisturbed: {last_step + 1} steps, the first after {join_s:.0f} s", flush=True)
        while sum(counts.values()) < kills:
            number = len(list(work.glob("killed-*.trace")))
            run = Run(work / f"killed-{number}", work / "data", _SETTINGS, within=["setsid"])
            campaign = Campaign(run, number % 2 == 0, last_step, join_s, draw)
            moments = list(MOMENTS[: kills - sum(counts.values())])
            verdict = judge(campaign, moments, whole)
            counts.update(text.split(" (")[0] for text in campaign.killed)
            how = "torchrun --max-restarts" if campaign.by_torchrun else "the same command again"
            print(
                f"{how}: {', '.join(campaign.killed)}: {campaign.starts} starts, the slowest {campaign.longest_s:.0f} s: {verdict}",
                flush=True,
            )
            all_hold = all_hold and verdict == "holds"
    print(f"{sum(counts.values())} kills: {', '.join(f'{moment} {counts[moment]}' for moment in MOMENTS)}", flush=True)
    sys.exit(not all_hold)


def judge(campaign: Campaign, moments: list[str], whole: Run) -> str:
    """Run a campaign; return "holds", or what does not."""
    try:
        campaign.kill(moments)
    except (NoEnd, subprocess.TimeoutExpired) as error:
        campaign.end()
        return f"NO END: {error}; {campaign.run.stderr.read_text(errors='replace')[-1500:]}"
    if campaign.run.started[-1].status:
        return f"FAILED: {campaign.run.started[-1].stderr[-400:]}"
    found = []
    if campaign.run.files() != whole.files():
        found.append("OTHER BITS")
    if campaign.run.batches() != whole.batches():
        found.append("OTHER IMPRESSIONS")
    if left := campaign.left():
        found.append(f"LEFT BEHIND: {left}")
    return ", ".join(found) or "holds"


if __name__ == "__main__":
    main()
