"""Does a change cost speed? Two checkouts in turns: CPU seconds of preprocessing and training, ns an impression of the feed.

    git worktree add ../before main~1
    python -m benchmarks.before_after before=../before
    python -m benchmarks.before_after before=../before pairs=5 impressions=1000000 only=preprocess,train
    python -m benchmarks.before_after before=../before after=../other work=FOLDER   # keeps log and dataset for the next time

Each pair runs both checkouts one after the other, and they take turns in who runs first. Every command runs in its
checkout, with that as PYTHONPATH and one thread a rank. Before the first pair each checkout runs everything once on a
small log, which compiles the kernels. The log, and the dataset that both train on, are the older checkout's. A ratio
above 1 says that the change made it cheaper. On a busy machine CPU seconds rise too and wall seconds mean nothing: look
at the load.
"""

import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_cost import Cost, cost_of
from benchmarks.train import processor

WARM_UP_IMPRESSIONS = 60_000

Figures = dict[str, float]  # by name; less is better


@dataclass(frozen=True)
class Checkout:
    """One side of the comparison."""

    name: str
    path: Path

    def run(self, module: str, *arguments: str) -> Cost:
        """Run `python -m <module> <arguments>` of this checkout."""
        environment = {"PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1"}
        return cost_of([sys.executable, "-m", module, *arguments], self.path, environment)


@dataclass(frozen=True)
class Inputs:
    """A raw log, its dataset without validation split, and a folder for what the measured commands write."""

    log: Path
    dataset: Path
    scratch: Path


def make_inputs(checkout: Checkout, folder: Path, impressions: int) -> Inputs:
    """Simulate and preprocess a log below `folder`; where both are there, the commands find that all is done."""
    inputs = Inputs(folder / "log", folder / "dataset", folder / "scratch")
    inputs.scratch.mkdir(parents=True, exist_ok=True)
    checkout.run("jobs.simulate", f"out={inputs.log}", f"impressions={impressions}", "seed=1")
    checkout.run("jobs.preprocess", f"source.path={inputs.log}", f"out={inputs.dataset}", "split.validation=0")
    return inputs


def measure_preprocess(checkout: Checkout, inputs: Inputs) -> Figures:
    """Measure jobs.preprocess with its defaults."""
    out = inputs.scratch / "dataset"
    shutil.rmtree(out, ignore_errors=True)
    return seconds_of(checkout.run("jobs.preprocess", f"source.path={inputs.log}", f"out={out}"))


def measure_feed(checkout: Checkout, inputs: Inputs) -> Figures:
    """Measure the feed by the checkout's own benchmarks.feed."""
    return feed_figures(checkout.run("benchmarks.feed", f"data={inputs.dataset}", "runs=3").output)


def measure_train(checkout: Checkout, inputs: Inputs) -> Figures:
    """Measure one epoch of ESMM on one rank, without validation, with one checkpoint at its end."""
    out = inputs.scratch / "run"
    shutil.rmtree(out, ignore_errors=True)
    arguments = [f"data={inputs.dataset}", f"out={out}", "model=esmm", "validation.split=null"]
    return seconds_of(checkout.run("jobs.train", *arguments, "checkpoint.every_minutes=0"))


MEASURES: dict[str, Callable[[Checkout, Inputs], Figures]] = {
    "preprocess": measure_preprocess,
    "feed": measure_feed,
    "train": measure_train,
}


def seconds_of(cost: Cost) -> Figures:
    return {"CPU s": cost.cpu_s, "wall s": cost.wall_s}


def feed_figures(output: str) -> Figures:
    """Read what benchmarks.feed prints: ns an impression of both sides, and the feed's cost as a multiple of pyarrow's."""
    each_ns = dict(re.findall(r"^(\S.*?) +([\d.]+) ns an impression", output, re.M))
    ratio = re.search(r"^ratio ([\d.]+)", output, re.M)
    if ratio is None or not {"feed", "bare pyarrow"} <= each_ns.keys():
        raise SystemExit(f"benchmarks.feed printed no figures:\n{output}")
    return {
        "ns an impression": float(each_ns["feed"]),
        "bare pyarrow, ns an impression": float(each_ns["bare pyarrow"]),
        "of bare pyarrow, times": 1 / float(ratio[1]),
    }


def turns(sides: Sequence[Checkout], pair: int) -> list[Checkout]:
    """Return both sides in the order of this pair: what runs second finds warm file caches, or a hotter processor."""
    return list(sides if pair % 2 == 0 else reversed(sides))


def rows_of(name: str, pairs: Sequence[tuple[Figures, Figures]]) -> list[str]:
    """Make a row of the table for each figure: the medians of both sides, and the median of the pairs' ratios.

    The ratio is not that of the medians: two runs of a pair share the machine's mood, two medians need not.
    """
    rows = []
    for figure in pairs[0][0]:
        before, after = ([pair[side][figure] for pair in pairs] for side in (0, 1))
        ratios = [old / new for old, new in zip(before, after, strict=True)]
        cells = [f"{name}, {figure}", f"{statistics.median(before):.2f}", f"{statistics.median(after):.2f}"]
        cells += [f"{statistics.median(ratios):.3f}", " ".join(f"{ratio:.3f}" for ratio in ratios)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def compare(sides: Sequence[Checkout], names: Sequence[str], num_pairs: int, impressions: int, work: Path) -> list[str]:
    """Measure `names` in pairs, printing each reading, and return the rows of the table."""
    small, large = (make_inputs(sides[0], work / str(size), size) for size in (WARM_UP_IMPRESSIONS, impressions))
    for side in sides:
        for name in names:
            MEASURES[name](side, small)
    pairs: dict[str, list[tuple[Figures, Figures]]] = {name: [] for name in names}
    for pair in range(num_pairs):
        for name in names:
            found: dict[str, Figures] = {}
            for side in turns(sides, pair):
                found[side.name] = MEASURES[name](side, large)
                shown = ", ".join(f"{figure} {value:.2f}" for figure, value in found[side.name].items())
                load = os.getloadavg()[0]
                print(f"pair {pair + 1}, {side.name}: {name}: {shown} (load {load:.1f})", flush=True)
            before, after = (found[side.name] for side in sides)
            pairs[name].append((before, after))
    return [row for name in names for row in rows_of(name, pairs[name])]


def main() -> None:
    """Parse the command line and print the table."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    names = options.get("only", ",".join(MEASURES)).split(",")
    if "before" not in options or not set(names) <= MEASURES.keys():
        sys.exit(__doc__)
    sides = [Checkout(name, Path(options.get(name, ".")).resolve()) for name in ("before", "after")]
    num_pairs, impressions = int(options.get("pairs", 3)), int(options.get("impressions", 1_000_000))
    with tempfile.TemporaryDirectory(prefix="before-after-") as scratch:
        rows = compare(sides, names, num_pairs, impressions, Path(options.get("work", scratch)).resolve())
    print(f"\n{processor()} · {os.cpu_count()} cores · {impressions:,} impressions · medians of {num_pairs} pairs\n")
    print("| | before | after | before / after | of each pair |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
