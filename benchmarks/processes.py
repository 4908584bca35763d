"""CPU seconds and memory of this process and all that it started, read from /proc."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_EVERY_S = 0.25


@dataclass
class ProcessCost:
    """The cost of a block of code: CPU seconds by kind of process, and the peak of their total memory."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    clock_s: float = 0.0

    @property
    def total_s(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.cpu_s.values())


@contextmanager
def process_cost(only_new: bool = False) -> Iterator[ProcessCost]:
    """Measure a block: user and system time of the process tree, less that of the measuring thread.

    `only_new` counts the memory of processes started inside alone: Spark's processes stay alive, and are not a peer's.
    """
    found, watching, stop = ProcessCost(), [0.0], threading.Event()
    old = set(_tree(os.getpid())) if only_new else set()

    def watch() -> None:
        while not stop.wait(_EVERY_S):
            found.peak_mb = max(found.peak_mb, _memory_mb([pid for pid in _tree(os.getpid()) if pid not in old]))
            watching[0] = time.thread_time()

    before, started = _cpu_seconds(_tree(os.getpid())), time.monotonic()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
    after = _cpu_seconds(_tree(os.getpid()))
    # Spark ends Python workers that have been idle for a minute, and their seconds go with them.
    found.cpu_s = {kind: max(0.0, after[kind] - before[kind]) for kind in after}
    found.cpu_s["driver"] -= watching[0]
    found.clock_s = time.monotonic() - started


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _cpu_seconds(pids: list[int]) -> dict[str, float]:
    """Sum CPU seconds by kind of process, with the time of children that have ended and were waited for."""
    total = {"driver": 0.0, "jvm": 0.0, "workers": 0.0}
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        kind = "driver" if pid == os.getpid() else "jvm" if "(java)" in text else "workers"
        total[kind] += sum(map(int, text.rsplit(")", 1)[1].split()[11:15])) / _TICKS
    return total


def _memory_mb(pids: list[int]) -> float:
    """Sum the proportional set sizes: shared memory counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
