"""CPU microseconds an impression of training ESMM: this project beside torch-rechub and DeepCTR-Torch.

    python3.11 -m venv PEERS
    PEERS/bin/pip install torch==2.13.0
    PEERS/bin/pip install --no-deps torch-rechub==0.9.0 deepctr-torch==0.3.0
    PEERS/bin/pip install numpy pandas scikit-learn tqdm requests packaging pyarrow xxhash
    python -m benchmarks.peers --data DATASET --peer-python PEERS/bin/python

DATASET comes from jobs.preprocess. All sides read the same impressions from its Parquet files, train one epoch in one
thread with two towers of hidden layers 200 and 80 on embeddings of 18, and predict the same test impressions, three
times:

- 18 fields: those with one value, and the four crosses of user and item, of which the peers take the first value;
- 23 fields, each padded to 100 values: the peers drop what is longer;
- 23 fields, each padded to 430 values, which keeps nearly all of them.

The peers have no place for a value's weight, so they lose all weights; ours keeps every value with its weight in each
of the three. A padded field is never wider than its longest bag. Measured is the CPU time of all threads of a process
during the training loop: for the peers from arrays in memory, for ours from the Parquet files. The second figure is
with a malloc that keeps what is freed (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_).

Of the towers and the optimizer each side has what it offers: ours row-wise Adagrad for embeddings and Adam for towers;
the peers one Adam for all; torch-rechub's towers also normalize each batch, and no setting turns that off. Ours has the
trainer's default rates; the peers' is the best of three, chosen on validation impressions. At the default size this
takes some ten minutes on two free cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.peers import inputs
from benchmarks.train import processor
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import load_manifest
from training.evaluation import metrics

OURS, LIBRARIES = "entirespace", ("torch-rechub", "deepctr-torch")
#: Ours is short beside the others, so what else the machine does weighs more on it: the median of three.
ORDER = (OURS, LIBRARIES[0], OURS, LIBRARIES[1], OURS)
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


def median(runs: list[Outcome]) -> Outcome:
    """Return the first of `runs` with the medians of their CPU times."""
    costs = {name: statistics.median(getattr(found, name) for found in runs) for name in ("cpu_us", "tuned_cpu_us")}
    return replace(runs[0], **costs)


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
    fields = load_manifest(arguments.data).fields_of(stored=INDEX)
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
            commands = {OURS: [sys.executable, "-m", "benchmarks.peers.ours", str(dataset), batch]}
            for library in LIBRARIES:
                peer = [arguments.peer_python, "-m", "benchmarks.peers.libraries", library]
                commands[library] = [*peer, str(dataset), str(variant.pad), batch]
            runs: dict[str, list[Outcome]] = {}
            for side in ORDER:
                runs.setdefault(side, []).append(run(commands[side], Path(scratch) / "predicted.npz"))
            outcomes = {side: median(found) for side, found in runs.items()}
            for side, outcome in outcomes.items():
                rows.append(_row(variant, side, outcome, whole if side == OURS else kept, outcomes[OURS]))
                versions.append(outcome.version)
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
