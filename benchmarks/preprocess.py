"""python benchmarks/preprocess.py RAW: MB of raw text a core-second, peak memory, bytes per impression.

CPU seconds are those of all processes: this driver, Spark's JVM and every Python worker. Cold is the first run of a
process, with Spark's start and its JIT; warm is the second run in the same session.
"""

import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_module

from jobs.entry import typed
from pipeline.manifest import Manifest
from pipeline.preprocess import preprocess
from pipeline.settings import PreprocessSettings

_TICKS = os.sysconf("SC_CLK_TCK")


def process_tree(root: int) -> list[int]:
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


def cpu_seconds(pids: list[int]) -> dict[str, float]:
    """CPU by kind of process, with that of children that have ended."""
    total = {"driver": 0.0, "jvm": 0.0, "workers": 0.0}
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        kind = "driver" if pid == os.getpid() else "jvm" if "(java)" in text else "workers"
        total[kind] += sum(map(int, text.rsplit(")", 1)[1].split()[11:15])) / _TICKS
    return total


def memory_mb(pids: list[int]) -> float:
    """Proportional set size: what workers share counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@contextmanager
def peak_memory() -> Iterator[tuple[list[float], list[float]]]:
    """(peak in MB, CPU seconds of the watching itself), filled in the end."""
    peak, watching, stop = [0.0], [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak[0] = max(peak[0], memory_mb(process_tree(os.getpid())))
            watching[0] = time.thread_time()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak, watching
    finally:
        stop.set()
        thread.join()


def measured(name: str, raw: str, raw_mb: float, out: Path, overrides: list[str]) -> Manifest:
    with initialize_config_module("conf", version_base="1.3"):
        settings = typed(PreprocessSettings, compose("preprocess", [f"source.path={raw}", f"out={out}", *overrides]))
    before, started = cpu_seconds(process_tree(os.getpid())), time.monotonic()
    with peak_memory() as (peak, watching):
        manifest = preprocess(settings)
    after = cpu_seconds(process_tree(os.getpid()))
    spent = {kind: after[kind] - before[kind] for kind in after}
    spent["driver"] -= watching[0]
    total = sum(spent.values())
    parts = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in spent.items())
    print(
        f"{name}: {raw_mb / total:.1f} MB/core-s ({raw_mb:,.0f} MB in {total:.1f} CPU s: {parts}; "
        f"{time.monotonic() - started:.1f} s on the clock), peak {peak[0]:,.0f} MB",
        flush=True,
    )
    return manifest


def main() -> None:
    raw, overrides = sys.argv[1], sys.argv[2:]
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    directory = Path(tempfile.mkdtemp(prefix="entirespace-benchmark-"))
    try:
        for name in ("cold", "warm", "warm"):
            out = directory / f"{name}-{time.monotonic_ns()}"
            raw_mb = sum(path.stat().st_size for path in Path(raw).glob("[sc]*_*.csv*")) / 1e6
            manifest = measured(name, raw, raw_mb, out, overrides)
        num_bytes = sum(file.bytes for file in manifest.files)
        impressions = sum(total["impressions"] for total in manifest.totals.values())
        print(f"dataset: {num_bytes / impressions:.1f} bytes per impression ({impressions:,} impressions)")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
