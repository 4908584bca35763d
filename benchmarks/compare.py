"""Compare configurations of jobs.train over datasets and seeds: mean ± standard deviation of every AUC.

    python -m benchmarks.compare --data DATASET --split validation --seeds 1 2 3 -- \\
        "model=esmm optimizer.towers.lr=1e-3,1e-2 embedding.pooling=mean,sum" "model=base plan.batch_size=600"

Each argument is a set of settings; values with commas between are crossed, as in Hydra's multirun. A seed is that of
the initial values and of the order of the data. With --results FILE every run is appended to it and none is repeated,
so a study can be interrupted and resumed. A run is known by the settings given here alone: use a new FILE when defaults
change.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from benchmarks.runs import CONTEXTS, CPU_S, run
from benchmarks.train import processor

AUCS = ("ctr_auc", "cvr_auc", "cvr_all_auc", "ctavr_auc", "ctcvr_auc")


def crossed(text: str) -> list[list[str]]:
    """Expand a text such as "a=1,2 b=[3,4]" into all its combinations of settings."""
    keys = [part.partition("=") for part in text.split()]
    values = [[value] if value.startswith(("[", "{", "'", '"')) else value.split(",") for _, _, value in keys]
    return [
        [f"{key}={one}" for (key, _, _), one in zip(keys, choice, strict=True)] for choice in itertools.product(*values)
    ]


def study(
    configurations: list[list[str]],
    data: list[str],
    truth: list[str],
    split: str,
    seeds: list[int],
    results: Path | None,
) -> dict[str, list[dict[str, float]]]:
    """Run every configuration over `data` and `seeds`; return the figures of its runs by configuration."""
    lines = results.read_text().splitlines() if results is not None and results.exists() else []
    known = {tuple(entry["run"]): entry["figures"] for entry in map(json.loads, lines)}
    found: dict[str, list[dict[str, float]]] = {}
    for overrides in configurations:
        for dataset, true in zip(data, truth or [None] * len(data), strict=True):
            for seed in seeds:
                key = (dataset, split, f"seed={seed}", *overrides)
                if key not in known:
                    seeded = [*overrides, f"seed={seed}", f"plan.seed={seed}"]
                    known[key] = run(dataset, seeded, split, true)
                    if results is not None:
                        with results.open("a") as file:
                            file.write(json.dumps({"run": key, "figures": known[key]}) + "\n")
                found.setdefault(" ".join(overrides), []).append(known[key])
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Make the Markdown table: a row for each configuration, mean ± standard deviation over its runs."""
    names = [name for name in AUCS if any(name in figures for runs in found.values() for figures in runs)]
    lines = ["| settings | " + " | ".join([*names, "contexts a batch", "CPU s a run"]) + " |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for settings, runs in found.items():
        cells = [settings]
        for name in names:
            values = [figures[name] for figures in runs if name in figures]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}" if values else "–")
        cells.append(f"{statistics.mean(figures[CONTEXTS] for figures in runs):.0f}")
        cells.append(f"{statistics.mean(figures[CPU_S] for figures in runs):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument(
        "--truth", nargs="+", default=[], help="for each dataset, the simulator's true probabilities of the split"
    )
    parser.add_argument("--split", default="validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--results", type=Path)
    parser.add_argument("settings", nargs="+")
    arguments = parser.parse_args()
    configurations = [choice for text in arguments.settings for choice in crossed(text)]
    found = study(configurations, arguments.data, arguments.truth, arguments.split, arguments.seeds, arguments.results)
    num_runs = len(arguments.data) * len(arguments.seeds)
    print(f"{processor()} · {arguments.split} · mean ± standard deviation of {num_runs} runs each")
    print(table(found))


if __name__ == "__main__":
    main()
