"""Does the average of the weights calibrate, and at what cost? Runs that differ in the order of the data alone.

    python -m benchmarks.calibration_seeds data=DATASET
    python -m benchmarks.calibration_seeds data=DATASET seeds=8 split=test model=esmm plan.batch_size=1000
    python -m benchmarks.calibration_seeds data=DATASET seeds=0 cost_pairs=5

Each seed trains once, by the trainer's own loop on one rank and thread, and predicts the split twice: with the last weights,
as before the average, and with the average. Of each: AUC, log loss, and predicted over observed. Then how many seeds are
within 5 % of the observed rate. `cost_pairs` trains with and without the average in turns and compares CPU seconds.
Other arguments are those of jobs.train; plan.batch_size=1000 is that of make demo.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from benchmarks.runs import CPU_S, predict, train
from benchmarks.train import processor
from jobs.entry import compose
from training.distributed.world import join
from training.evaluation.metrics import Metrics, evaluate_with_curves
from training.evaluation.observed_rate import RIGHT_WITHIN, observed_rates
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

TASKS = ("ctr", "cvr", "ctcvr")
FIGURES = ("auc", "log_loss", "calibration")
DEFAULTS = {"seeds": "8", "split": "test", "cost_pairs": "0"}
WEIGHTS = ("last", "average")


def evaluated(trainer: Trainer, split: str) -> Metrics:
    """Evaluate the weights that the trainer's model has now; without users, so intervals are Poisson's."""
    found = evaluate_with_curves(predict(trainer, split))
    rates = observed_rates(found.curves, {})
    widths = {}
    for task, (overall, *_) in rates.items():
        low, high = overall.interval or (0.0, 0.0)
        widths[f"{task}_half_width"] = (high - low) / 2
    return found.metrics | widths


def of_seed(data: str, seed: int, split: str, overrides: Sequence[str]) -> dict[str, Metrics]:
    """Train with plan.seed=`seed`, and evaluate the last weights and the average."""
    with tempfile.TemporaryDirectory() as out:
        words = [f"data={data}", f"out={out}/run", "plan.batch_size=1000", *overrides, f"plan.seed={seed}"]
        settings = compose("train", TrainSettings, words)
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            train(trainer)
            found = {}
            for name, ready in (("last", nullcontext()), ("average", trainer.predicting())):
                with ready:
                    found[name] = evaluated(trainer, split)
            trainer.close()
            return found


def cpu_s(data: str, overrides: Sequence[str]) -> float:
    """Return the CPU seconds of one epoch, all threads, reading included."""
    with tempfile.TemporaryDirectory() as out:
        words = [f"data={data}", f"out={out}/run", "plan.batch_size=1000", *overrides]
        settings = compose("train", TrainSettings, words)
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            figures = train(trainer)
            trainer.close()
            return figures[CPU_S]


def row_of(seed: str, weights: str, metrics: Metrics) -> str:
    """Make a row of the table."""
    cells = [f"{metrics[f'{task}_{figure}']:.4f}" for figure in FIGURES for task in TASKS]
    return f"| {seed} | {weights} | {' | '.join(cells)} |"


def summary(weights: str, found: Sequence[Metrics]) -> list[str]:
    """Return mean, standard deviation over seeds, and how many are within 5 % of the observed rate."""
    rows = []
    for name, reduce in (("mean", statistics.mean), ("standard deviation", statistics.stdev)):
        if len(found) > 1:
            keys = (f"{task}_{figure}" for figure in FIGURES for task in TASKS)
            rows.append(row_of(name, weights, {key: reduce([float(one[key] or 0.0) for one in found]) for key in keys}))
    within = [
        sum(abs(float(one[f"{task}_calibration"] or 0.0) - 1.0) <= RIGHT_WITHIN for one in found) for task in TASKS
    ]
    rows.append(
        f"| within {RIGHT_WITHIN:.0%} | {weights} | | | | | | | {' | '.join(f'{count} of {len(found)}' for count in within)} |"
    )
    return rows


def main() -> None:
    """Parse the command line, train, and print the tables."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "data" not in options:
        sys.exit(__doc__)
    data, settings = options.pop("data"), {name: options.pop(name, value) for name, value in DEFAULTS.items()}
    overrides = [f"{name}={value}" for name, value in options.items()]
    torch.set_num_threads(1)
    print(f"{processor()} · {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} · {data} · {' '.join(overrides)}\n")
    columns = [f"{task.upper()} {figure.replace('_', ' ')}" for figure in FIGURES for task in TASKS]
    found: list[dict[str, Metrics]] = []
    for seed in range(1, int(settings["seeds"]) + 1):
        if not found:
            print(f"| plan.seed | weights | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
        found.append(of_seed(data, seed, settings["split"], overrides))
        print("\n".join(row_of(str(seed), name, found[-1][name]) for name in WEIGHTS), flush=True)
    if found:
        print("\n".join(row for name in WEIGHTS for row in summary(name, [one[name] for one in found])))
        chance = ", ".join(f"{task.upper()} ±{found[0]['average'][f'{task}_half_width']:.1%}" for task in TASKS)
        print(f"\nChance alone, in the labels of the split (95 %, Poisson): {chance}")
    ratios = []
    for pair in range(int(settings["cost_pairs"])):
        kinds = ("none", "polynomial") if pair % 2 == 0 else ("polynomial", "none")
        cost = {kind: cpu_s(data, [*overrides, f"average.kind={kind}"]) for kind in kinds}
        ratios.append(cost["polynomial"] / cost["none"])
        print(
            f"pair {pair + 1}: {cost['none']:.2f} CPU s without, {cost['polynomial']:.2f} with: {ratios[-1]:.3f}",
            flush=True,
        )
    if ratios:
        print(f"median of {len(ratios)} pairs: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
