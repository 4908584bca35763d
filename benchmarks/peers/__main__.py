"""CPU microseconds an impression of training ESMM: this project beside torch-rechub and DeepCTR-Torch.

    python3.11 -m venv PEERS
    PEERS/bin/pip install torch==2.13.0
    PEERS/bin/pip install --no-deps torch-rechub==0.9.0 deepctr-torch==0.3.0
    PEERS/bin/pip install numpy pandas scikit-learn tqdm requests packaging pyarrow xxhash
    python -m benchmarks.peers --data DATASET --peer-python PEERS/bin/python

DATASET comes from jobs.preprocess. All sides read the same impressions from its Parquet files, train one epoch in one thread with
two towers of hidden layers 200 and 80 on embeddings of 18, and predict the same test impressions, three times:

- 18 fields: those with one value, and the four crosses of user and item, of which the peers take the first value;
- 23 fields, each padded to 100 values: the peers drop what is longer;
- 23 fields, each padded to 430 values, which keeps nearly all of them.

The peers have no place for a value's weight, so they lose all weights; ours keeps every value with its weight in each of
the three. A padded field is never wider than its longest bag. Measured is the CPU time of all threads of a process during
the training loop: for the peers from arrays in memory, for ours from the Parquet files. The second figure is with a malloc that
keeps what is freed (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_).

Of the towers and the optimizer each side has what it offers: ours row-wise Adagrad for embeddings and Adam for towers; the peers
one Adam for all; torch-rechub's towers also normalize each batch, and no setting turns that off. Each side's learning rates were
chosen on validation impressions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers import inputs
from benchmarks.train import processor
from pipeline.manifest import load_manifest
from training import metrics

LIBRARIES = ("torch-rechub", "deepctr-torch")
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
#: At import DeepCTR-Torch asks PyPI for a newer version, in a thread that would be counted.
OFFLINE = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


@dataclass(frozen=True)
class Variant:
    """What all sides are given."""

    name: str
    pad: int
    single_only: bool


VARIANTS = (
    Variant("18 fields", 1, True),
    Variant("23 fields, padded to 100", 100, False),
    Variant("23 fields, padded to 430", 430, False),
)


@dataclass(frozen=True)
class Outcome:
    """One side of one variant."""

    cpu_us: float
    tuned_cpu_us: float
    peak_gb: float
    auc: dict[str, float]
    version: str


def run(command: list[str], out: Path) -> Outcome:
    """Run a side in processes of its own, with the allocator as it comes and tuned."""
    plain, tuned = (_reported([*command, str(out)], extra) for extra in ({}, TUNED))
    columns = dict(np.load(out))
    figures = metrics.evaluate(columns)
    auc = {task: figures[f"{task}_auc"] for task in ("ctr", "cvr", "ctcvr")}
    return Outcome(plain["cpu_us"], tuned["cpu_us"], plain["peak_gb"], auc, plain["version"])


def _reported(command: list[str], extra: dict[str, str]) -> dict:
    done = subprocess.run(
        command, env={**os.environ, **ONE_THREAD, **OFFLINE, **extra}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--impressions", type=int, default=150_000)
    parser.add_argument("--test-impressions", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=5000)
    arguments = parser.parse_args()
    fields = load_manifest(arguments.data).fields
    # user_item_* are crosses of user and item: none or one value mostly
    single = [
        entry.name for entry in fields if entry.arity == "one" or (entry.scope == "impression" and entry.weighted)
    ]
    counts = {"train": arguments.impressions, "test": arguments.test_impressions}
    batch = str(arguments.batch_size)
    versions: list[str] = []
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, variant in enumerate(VARIANTS):
            dataset = Path(scratch) / str(number)
            names = single if variant.single_only else [entry.name for entry in fields]
            manifest = inputs.subset(arguments.data, dataset, names, counts)
            kept = inputs.kept_share(str(dataset), inputs.widths(str(dataset), variant.pad), fields)
            whole = inputs.kept_share(str(dataset), inputs.widths(str(dataset), sys.maxsize), fields)
            predicted = Path(scratch) / "predicted.npz"
            us = run([sys.executable, "-m", "benchmarks.peers.ours", str(dataset), batch], predicted)
            sides = [("entirespace", us, whole)]
            for library in LIBRARIES:
                command = [arguments.peer_python, "-m", "benchmarks.peers.libraries", library, str(dataset)]
                sides.append((library, run([*command, str(variant.pad), batch], predicted), kept))
            rows += [_row(variant, side, outcome, share, us) for side, outcome, share in sides]
            versions += [outcome.version for _, outcome, _ in sides]
    totals = manifest.totals
    print(
        f"{processor()} · one thread · ESMM, hidden 200-80, embedding 18, batch {batch}, one epoch of "
        f"{totals['train']['impressions']:,} impressions, AUC on {totals['test']['impressions']:,}"
    )
    print(" · ".join(dict.fromkeys(versions)) + "\n")
    print(
        "| input | side | values kept | CPU-µs an impression | ratio | tuned malloc | ratio | peak GB | CTR AUC | CVR AUC | CTCVR AUC |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def _row(variant: Variant, side: str, outcome: Outcome, share: float, us: Outcome) -> str:
    auc = " | ".join(f"{value:.4f}" for value in outcome.auc.values())
    return (
        f"| {variant.name} | {side} | {share:.0%} | {outcome.cpu_us:.1f} | {outcome.cpu_us / us.cpu_us:.1f} "
        f"| {outcome.tuned_cpu_us:.1f} | {outcome.tuned_cpu_us / us.tuned_cpu_us:.1f} | {outcome.peak_gb:.1f} | {auc} |"
    )


if __name__ == "__main__":
    main()
