"""Does training take the memory that jobs.plan predicts? Resident growth from small tables to large ones, on CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.capacity --data DATASET [--ranks 2] [--rows user_id=1000000,8000000] [--set …]

One epoch of jobs.train's own loop under torchrun, for each size of the table: the same dataset, whose manifest says
more rows. Of each rank its resident memory once the model is built, after the last step, and once the checkpoint is
whole, and the peak; then by how much each grew from the first size to the last, beside what jobs.plan says of that
growth. What stands beside it is training.planning.memory_estimate's, for the rank that grows most.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.train import configured, processor
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import MANIFEST, load_manifest
from training.distributed.world import join
from training.planning.feasibility import with_rows
from training.planning.memory_estimate import memory_needs, table_plans
from training.run.malloc import keep_freed_memory
from training.run.trainer import StepOutcome, Trainer

MOMENTS = ("built", "last step", "checkpoint", "peak")


def resident_mb(name: str = "VmRSS") -> float:
    """Read a memory size of this process, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


class MemoryTrainer(Trainer):
    """A trainer that keeps the resident memory of its last step."""

    last_step_mb = 0.0

    def _count(self, step: int, agreed: StepOutcome) -> None:
        super()._count(step, agreed)
        self.last_step_mb = resident_mb()


def rank(data: str, overrides: list[str]) -> None:
    """Train one epoch in each rank, and write its figures beside the run."""
    torch.set_num_threads(1)
    keep_freed_memory()
    out = Path(os.environ["BENCHMARK_OUT"])
    settings = configured(data, str(out), "esmm", ["validation.split=null", *overrides])
    with join(settings.world) as world:
        trainer = MemoryTrainer(settings, world)
        built_mb = resident_mb()
        trainer.fit()
        figures = [built_mb, trainer.last_step_mb, resident_mb(), resident_mb("VmHWM")]
        (out.parent / f"rank-{world.rank}.json").write_text(json.dumps(figures))


def with_table_rows(data: Path, out: Path, field: str, rows: int) -> Path:
    """Copy the dataset `data` to `out`, with a manifest that says `rows` rows for the table of `field`."""
    manifest = with_rows(load_manifest(data), {field: rows})
    shutil.copytree(data, out)
    (out / MANIFEST).write_text(manifest.to_json())
    return out


def measure(data: Path, ranks: int, overrides: list[str]) -> list[list[float]]:
    """Train under torchrun; return the MB of every moment of MOMENTS, for each rank."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--local-addr", "127.0.0.1", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node", str(ranks), "-m", "benchmarks.capacity"]
        environment = os.environ | {"BENCHMARK_OUT": f"{folder}/run", "OMP_NUM_THREADS": "1"}
        words = ["--rank", "--data", str(data), "--set", *overrides]
        subprocess.run([*command, *words], env=environment, stdout=subprocess.DEVNULL, check=True)
        return [json.loads(Path(folder, f"rank-{number}.json").read_text()) for number in range(ranks)]


def plan_mb(data: Path, ranks: int, overrides: list[str]) -> list[float]:
    """Return the MB of each rank that jobs.plan predicts."""
    settings, manifest = configured(str(data), "", "esmm", overrides), load_manifest(data)
    tables = table_plans(manifest.fields_of(stored=INDEX), settings, ranks)
    return [number / 2**20 for number in memory_needs(tables, manifest, settings, ranks, on_cpu=True).ranks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--rows", default="user_id=1000000,8000000", help="a field, and the sizes of its table")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], help="of the configuration: optimizer=adagrad")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank(str(arguments.data), arguments.set)
        return
    field, _, sizes = arguments.rows.partition("=")
    print(f"{processor()} · {arguments.ranks} ranks · {field} · {' '.join(arguments.set)} · MB of the largest rank")
    print(f"| rows | jobs.plan | {' | '.join(MOMENTS)} |")
    print("|---" * (2 + len(MOMENTS)) + "|")
    lines = []
    for rows in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            data = with_table_rows(arguments.data, Path(folder) / "data", field, rows)
            said = plan_mb(data, arguments.ranks, arguments.set)
            found = measure(data, arguments.ranks, arguments.set)
        largest = max(range(arguments.ranks), key=said.__getitem__)
        lines.append([said[largest], *found[largest]])
        print(f"| {rows:,} | {' | '.join(f'{number:,.0f}' for number in lines[-1])} |", flush=True)
    growth = [last - first for first, last in zip(lines[0], lines[-1], strict=True)]
    print(f"| growth | {' | '.join(f'{number:,.0f}' for number in growth)} |")
    print(f"| of jobs.plan's | | {' | '.join(f'{number / growth[0]:.2f}' for number in growth[1:])} |")


if __name__ == "__main__":
    main()
