"""Does it matter to learning that the impressions of a context come together? AUC after one epoch, by K.

    python -m jobs.simulate out=RAW impressions=500000 train_share=0.8 rates=demo seed=1
    python -m benchmarks.grouping --raw RAW

For each K (rows.max_impressions): preprocess, train one epoch for each seed, evaluate on the test split. With --results
FILE every run is appended to it and none is repeated; it is known by its settings here alone, so begin a new FILE when
defaults change.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.runs import CONTEXTS, CPU_S, run
from benchmarks.train import processor
from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import load_manifest
from pipeline.preprocess import preprocess

AUCS = ("ctr_auc", "cvr_auc", "ctcvr_auc")
#: A figure of the dataset, beside those of the run: its train files.
BYTES = "bytes_an_impression"


def dataset_of(raw: str, out: Path, max_impressions: int) -> float:
    """Preprocess `raw` with K = `max_impressions`; return the train files' bytes an impression."""
    preprocess(
        compose(
            "preprocess",
            PreprocessSettings,
            [f"source.path={raw}", f"out={out}", f"rows.max_impressions={max_impressions}"],
        )
    )
    manifest = load_manifest(out)
    return sum(file.bytes for file in manifest.files_of("train")) / manifest.totals["train"]["impressions"]


def study(
    raw: str, sizes: list[int], seeds: list[int], overrides: list[str], results: Path | None
) -> dict[int, list[dict[str, float]]]:
    """Train with every K and seed; return the figures of the seeds by K."""
    lines = results.read_text().splitlines() if results is not None and results.exists() else []
    known = {tuple(entry["run"]): entry["figures"] for entry in map(json.loads, lines)}
    found: dict[int, list[dict[str, float]]] = {}
    for size in sizes:
        keys = [(raw, size, seed, *overrides) for seed in seeds]
        with tempfile.TemporaryDirectory() as folder:
            if any(key not in known for key in keys):
                dataset_bytes = dataset_of(raw, Path(folder) / "data", size)
            for key, seed in zip(keys, seeds, strict=True):
                if key not in known:
                    seeded = [*overrides, f"seed={seed}", f"plan.seed={seed}"]
                    known[key] = run(f"{folder}/data", seeded, "test") | {BYTES: dataset_bytes}
                    if results is not None:
                        with results.open("a") as file:
                            file.write(json.dumps({"run": key, "figures": known[key]}) + "\n")
        found[size] = [known[key] for key in keys]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 16, 4, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--results", type=Path)
    parser.add_argument("settings", nargs="*", default=["model=esmm", "plan.batch_size=1000"])
    arguments = parser.parse_args()
    found = study(arguments.raw, arguments.sizes, arguments.seeds, arguments.settings, arguments.results)
    print(f"{processor()} · {' '.join(arguments.settings)} · mean ± standard deviation of {len(arguments.seeds)} seeds")
    print(f"| K | distinct contexts a batch | {' | '.join(AUCS)} | CPU s a run | bytes an impression |")
    print("|---" * (4 + len(AUCS)) + "|")
    for size, runs in found.items():
        cells = [str(size), f"{statistics.mean(figures[CONTEXTS] for figures in runs):.0f}"]
        for name in AUCS:
            values = [figures[name] for figures in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}")
        cells.append(f"{statistics.mean(figures[CPU_S] for figures in runs):.1f}")
        cells.append(f"{runs[0][BYTES]:.1f}")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
