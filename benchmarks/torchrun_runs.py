"""Training runs under the real torchrun, started, watched step by step and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.checkpoint.files import find_newest
from training.checkpoint.meta import META_FILE

LOOK_S = 0.01
PATIENCE_S = 300.0
_TAIL_BYTES = 1 << 16  # longer than a line


@dataclass
class Ended:
    """How a start of a run ended."""

    status: int
    stderr: str  # the ranks' and torchrun's stderr

    @property
    def errors(self) -> list[str]:
        """Error messages of the ranks."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


@dataclass
class Run:
    """One training run, started as often as needed; its trace is beside it."""

    out: Path
    data: Path
    overrides: Sequence[str] = ()
    within: Sequence[str] = ()  # a command that starts torchrun
    started: list[Ended] = field(default_factory=list)
    traced_before: int = 0  # bytes, at the latest start

    @property
    def trace(self) -> Path:
        """Folder that benchmarks.traced_rank writes to."""
        return self.out.with_name(f"{self.out.name}.trace")

    def start(self, ranks: int, *torchrun: str) -> "subprocess.Popen[bytes]":
        """Start torchrun with `ranks` ranks that meet on loopback; its stderr goes to <out>.stderr."""
        self.trace.mkdir(parents=True, exist_ok=True)
        self.traced_before = self._traced_bytes()
        command = [*self.within, sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        # A free port that torchrun finds itself: one that was found before it starts may be taken by then.
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", *torchrun]
        command += ["-m", "benchmarks.traced_rank", f"data={self.data}", f"out={self.out}", *self.overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TRACE": str(self.trace)}
        with self.stderr.open("wb") as stderr:
            return subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr)

    @property
    def stderr(self) -> Path:
        """Output of the latest start."""
        return self.out.with_name(f"{self.out.name}.stderr")

    def finish(self, process: "subprocess.Popen[bytes]", timeout_s: float = PATIENCE_S) -> Ended:
        """Wait for the end of torchrun and of its ranks."""
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_all(process)
            raise
        ended = Ended(status, self.stderr.read_text(errors="replace"))
        self.started.append(ended)
        return ended

    def first_error_s(self, process: "subprocess.Popen[bytes]") -> float:
        """Wait for the first error message, or the end of torchrun; return the seconds."""
        begun_s = time.monotonic()
        while process.poll() is None and b"\nerror: " not in b"\n" + self.stderr.read_bytes():
            time.sleep(LOOK_S)
        return time.monotonic() - begun_s

    def reach(self, step: int, process: "subprocess.Popen[bytes]") -> bool:
        """Wait until rank 0 takes `step` of the run; return False if the process ends before that."""
        deadline_s = time.monotonic() + PATIENCE_S
        while process.poll() is None:
            if self._traced_bytes() > self.traced_before and self._latest_step() >= step:
                return True
            assert time.monotonic() < deadline_s, f"{self.out} does not come to step {step}"
            time.sleep(LOOK_S)
        return False

    def _traced_bytes(self) -> int:
        path = self.trace / "rank-0.txt"
        return path.stat().st_size if path.exists() else 0

    def _latest_step(self) -> int:
        with (self.trace / "rank-0.txt").open("rb") as trace:
            trace.seek(max(0, self._traced_bytes() - _TAIL_BYTES))
            return int(trace.read().splitlines()[-1].split()[0])

    def files(self) -> dict[str, str]:
        """Return the xxh3 of each file of the newest whole checkpoint, and its step."""
        found = find_newest(self.out, print)
        assert found is not None
        entries = json.loads((found.path / META_FILE).read_text())["files"]
        return {name: entry["xxh3"] for name, entry in entries.items()} | {"step": found.path.name}

    def last_step(self) -> int:
        """Return the step at which the next start resumes."""
        found = find_newest(self.out, lambda line: None)
        return int(found.path.name.removeprefix("step-")) if found else 0

    def batches(self) -> list[list[int]]:
        """Return the sorted impressions of each step's global batch; a step taken twice must have had the same ones."""
        seen: dict[int, dict[int, list[int]]] = defaultdict(dict)
        for path in sorted(self.trace.glob("rank-*.txt")):
            rank = int(path.stem.removeprefix("rank-"))
            for line in path.read_text().splitlines():
                step, *ids = (int(number) for number in line.split())
                known = seen[step].setdefault(rank, ids)
                assert known == ids, f"step {step} had other impressions when it was taken again"
        assert sorted(seen) == list(range(len(seen))), "a step is missing"
        return [sorted(number for ids in seen[step].values() for number in ids) for step in sorted(seen)]


def ranks_of(process: "subprocess.Popen[bytes]") -> list[int]:
    """List the process ids below `process`, in the order of their start: torchrun's ranks."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(pid) for pid in children.split()]


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL torchrun and its ranks, as when a node is lost."""
    for pid in [process.pid, *ranks_of(process)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
