"""Preprocessing: MB of raw text a core-second, peak memory, bytes an impression, the cost of each stage, other tools.

    python -m benchmarks.preprocess scale=0.3                                  # GB of raw text: cold, warm, stages
    python -m benchmarks.preprocess scale=0.3,1.3,4 peers=polars,duckdb,python # the same log through other tools
    python -m benchmarks.preprocess impressions=1,2,4,8 runs=5                 # millions, interleaved: cost of each
    python -m benchmarks.preprocess raw=RAW                                    # a log that is there

With logs=DIRECTORY simulated logs are kept there for the next time. Further arguments are settings of jobs.preprocess.
CPU seconds are user and system time of all processes: this driver, Spark's JVM and every Python worker. Memory is the
sum of their proportional set sizes, read four times a second. Cold is the first run of a process, with Spark's start
and its JIT; warm is a later run in the same session. Logs come from jobs.simulate with seed 1. For peers they are
without dirt and without a validation split, which peers cannot handle, and all datasets must hold the same numbers, or
this stops.
"""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.preprocess_peers.contents import contents
from benchmarks.preprocess_stages import stages
from benchmarks.processes import ProcessCost, process_cost
from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest
from pipeline.preprocess import preprocess

BYTES_AN_IMPRESSION = 425  # of raw text that jobs.simulate writes
PEERS = ("polars", "duckdb", "python")


def simulated_log(impressions: int, directory: Path, dirt: bool) -> Path:
    """Simulate a log of that size, in a process of its own."""
    out = directory / (f"raw-{impressions}" if dirt else f"raw-{impressions}-clean")
    if not out.exists():
        dirty = [] if dirt else ["dirt=0"]
        command = [sys.executable, "-m", "jobs.simulate", f"out={out}", f"impressions={impressions}", "seed=1", *dirty]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def raw_mb(raw: Path) -> float:
    """Return the MB of raw text that all sides read."""
    return sum(path.stat().st_size for path in raw.glob("[sc]*_*.csv*")) / 1e6


def settings_of(raw: Path, out: Path, overrides: list[str]) -> PreprocessSettings:
    """Compose the settings of jobs.preprocess as its command line does."""
    return compose("preprocess", PreprocessSettings, [f"source.path={raw}", f"out={out}", *overrides])


def run_ours(raw: Path, out: Path, overrides: list[str]) -> tuple[Manifest, ProcessCost]:
    """Run jobs.preprocess once, in the session that the first run started."""
    settings = settings_of(raw, out, overrides)
    with process_cost() as cost:
        manifest = preprocess(settings)
    return manifest, cost


def print_cost(name: str, megabytes: float, cost: ProcessCost) -> None:
    """Print one line of the report."""
    parts = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in cost.cpu_s.items() if seconds >= 0.05)
    print(
        f"{name:>14}: {megabytes / cost.total_s:6.1f} MB/core-s ({megabytes:,.0f} MB in {cost.total_s:.1f} CPU s: {parts}; "
        f"{cost.clock_s:.0f} s on the clock), peak {cost.peak_mb:,.0f} MB",
        flush=True,
    )


def compare_at_one_size(raw: Path, directory: Path, peers: list[str], overrides: list[str]) -> None:
    """Measure cold and warm runs of ours, the stages, and each peer once, on one log."""
    megabytes = raw_mb(raw)
    if peers:
        overrides = ["split.validation=0", *overrides]
    for name in ("first", "warm", "warm"):
        out = directory / "ours"
        shutil.rmtree(out, ignore_errors=True)
        manifest, cost = run_ours(raw, out, overrides)
        print_cost(name, megabytes, cost)
    impressions = sum(total["impressions"] for total in manifest.totals.values())
    num_bytes = sum(file.bytes for file in manifest.files)
    num_ids = sum(field.num_rows for field in manifest.fields)
    print(f"dataset: {num_bytes / impressions:.1f} bytes per impression, {impressions:,} impressions, {num_ids:,} ids")
    if peers:
        expected = contents(out / file.path for file in manifest.files)
    for peer in peers:
        peer_out = directory / peer
        peer_out.mkdir()
        other = run_peer(peer, raw, peer_out)
        print_cost(peer, megabytes, other)
        print(f"{'':>16}ours / {peer}: {other.total_s / cost.total_s:.2f}", flush=True)
        compare(peer, expected, contents(peer_out / f"{period}.parquet" for period in ("train", "test")))
        shutil.rmtree(peer_out)
    if megabytes < 600:  # the stages hold the log in memory
        stage_table(settings_of(raw, directory / "stages", overrides), megabytes, cost)


def run_peer(peer: str, raw: Path, out: Path) -> ProcessCost:
    """Run a peer in a process of its own."""
    with process_cost(only_new=True) as cost:
        module = f"benchmarks.preprocess_peers.{peer}_peer"
        subprocess.run([sys.executable, "-m", module, str(raw), str(out)], check=True)
    # It is gone by now, so its time is in that of the driver's children that were waited for.
    return cost


def compare(peer: str, expected: dict[str, int], found: dict[str, int]) -> None:
    """Stop if the datasets differ: then the work was not equal."""
    differ = {
        name: (expected.get(name), found.get(name))
        for name in expected | found
        if expected.get(name) != found.get(name)
    }
    if differ:
        sys.exit(f"{peer} wrote other numbers than ours (ours, {peer}): {differ}")


def stage_table(settings: PreprocessSettings, megabytes: float, warm: ProcessCost) -> None:
    """Print the cost of each stage; the rest is Spark's."""
    found = stages(settings)
    print("\n| stage | CPU s | MB a core-second |\n|---|---|---|")
    for name, seconds in sorted(found.items(), key=lambda item: -item[1]):
        print(f"| {name} | {seconds:.2f} | {megabytes / seconds:,.0f} |")
    total = sum(found.values())
    print(f"| **all of it without Spark** | {total:.2f} | {megabytes / total:,.0f} |")
    print(f"| JVM: shuffle, sort, sockets, planning | {warm.cpu_s['jvm']:.2f} | |")
    rest = warm.cpu_s["workers"] + warm.cpu_s["driver"] - total
    print(f"| PySpark: tasks, sockets, Arrow between JVM and Python | {rest:.2f} | |")
    print(f"| **the warm run** | {warm.total_s:.2f} | {megabytes / warm.total_s:,.0f} |", flush=True)


def scaling(millions: list[float], runs: int, logs: Path, directory: Path, overrides: list[str]) -> None:
    """Measure CPU seconds a million impressions at each size: the median of interleaved warm runs."""
    raws = {size: simulated_log(round(size * 1e6), logs, dirt=True) for size in millions}
    run_ours(raws[min(millions)], directory / "warming", overrides)
    costs: dict[float, list[ProcessCost]] = {size: [] for size in millions}
    for _ in range(runs):
        for size, raw in raws.items():
            shutil.rmtree(directory / "ours", ignore_errors=True)
            _, cost = run_ours(raw, directory / "ours", overrides)
            costs[size].append(cost)
            print_cost(f"{size:g}M", raw_mb(raw), cost)
    print(
        "\n| impressions | CPU s a million, median | least, most | MB a core-second | peak memory, MB |\n|---|---|---|---|---|"
    )
    for size, found in costs.items():
        per_million = sorted(cost.total_s / size for cost in found)
        middle, peak = statistics.median(per_million), max(cost.peak_mb for cost in found)
        speed = raw_mb(raws[size]) / size / middle
        print(f"| {size:g}M | {middle:.2f} | {per_million[0]:.2f}, {per_million[-1]:.2f} | {speed:.0f} | {peak:,.0f} |")


def main() -> None:
    """Parse the command line and run what it asks for."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    options = {
        name: given.pop(name) for name in ("scale", "raw", "peers", "impressions", "runs", "logs") if name in given
    }
    overrides = [f"{name}={value}" for name, value in given.items()]
    peers = [peer for peer in options.get("peers", "").split(",") if peer]
    if not {"scale", "raw", "impressions"} & options.keys() or not set(peers) <= set(PEERS):
        sys.exit(__doc__)
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="entirespace-benchmark-"))
    logs = Path(options.get("logs", directory))
    try:
        if "impressions" in options:
            scaling(
                [float(size) for size in options["impressions"].split(",")],
                int(options.get("runs", 5)),
                logs,
                directory,
                overrides,
            )
        elif "raw" in options:
            compare_at_one_size(Path(options["raw"]), directory, peers, overrides)
        else:
            for scale in map(float, options["scale"].split(",")):
                impressions = round(scale * 1e9 / BYTES_AN_IMPRESSION, -4)
                raw = simulated_log(int(impressions), logs, dirt=not peers)
                print(f"\n{scale:g} GB, {impressions:,.0f} impressions", flush=True)
                compare_at_one_size(raw, directory, peers, overrides)
                if "logs" not in options:
                    shutil.rmtree(raw)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
