"""CPU seconds per million impressions, bytes written and peak memory of jobs.simulate at two sizes.

    python benchmarks/simulate.py                 # 1M and 4M impressions, in a temporary folder
    python benchmarks/simulate.py 1000000 10000000

Each size runs in a process of its own, start and compiled kernels' loading included; run it twice if kernels are cold.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path


def measure(impressions: int, out: Path) -> tuple[float, float, float]:
    """Simulate once; return CPU seconds, MB written, and peak resident MB."""
    command = [sys.executable, "-m", "jobs.simulate", f"out={out}", f"impressions={impressions}", "seed=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed; run it by hand to see why.")
    written = sum(path.stat().st_size for path in out.iterdir())
    unit = 1024 if sys.platform == "linux" else 1  # ru_maxrss is in KiB on Linux, in bytes on macOS
    return usage.ru_utime + usage.ru_stime, written / 1e6, usage.ru_maxrss * unit / 1e6


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [1_000_000, 4_000_000]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'impressions':>12} {'CPU s':>8} {'CPU s/M':>8} {'MB':>8} {'MB/CPU s':>9} {'peak MB':>8}")
    for impressions in sizes:
        with tempfile.TemporaryDirectory() as folder:
            cpu_s, megabytes, peak = measure(impressions, Path(folder) / "raw")
        per_million = cpu_s / impressions * 1e6
        print(
            f"{impressions:>12,} {cpu_s:>8.1f} {per_million:>8.1f} {megabytes:>8.0f} {megabytes / cpu_s:>9.1f} {peak:>8.0f}"
        )


if __name__ == "__main__":
    main()
