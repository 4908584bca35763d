"""Training by several ranks beside one, on one machine: impressions a second of wall time, and the ratios.

    OMP_NUM_THREADS=1 python -m benchmarks.ranks --data DATASET [--ranks 2]

One rank on one core, one rank on all cores, and several ranks on all, alternating, each under torchrun, over the same
global batches; the first steps are not counted. One rank uses more than a core where there is one, for its feed runs
beside it. The ratios mean something only where nothing else runs: the CPU share printed beside them says whether it
did.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import torch

from benchmarks.train import configured, endless, processor
from training.distributed.world import join
from training.run.malloc import keep_freed_memory
from training.run.trainer import Trainer

WARM_UP_STEPS = 12


def rank(data: str, model: str, num_steps: int, overrides: list[str]) -> None:
    """Train in each rank; the first prints the figures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    out = os.environ["BENCHMARK_OUT"]
    settings = configured(data, out, model, overrides)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        batches = endless(trainer)
        for _ in range(WARM_UP_STEPS):
            trainer.step(next(batches))
        world.barrier()
        start_s, cpu_s = time.monotonic(), time.process_time()
        for _ in range(num_steps):
            trainer.step(next(batches))
        world.barrier()
        wall_s, cpu_s = time.monotonic() - start_s, time.process_time() - cpu_s
        batches.close()
        total = world.sum(torch.tensor([cpu_s], dtype=torch.float64, device=world.device)).item()
        if world.rank == 0:
            print(json.dumps({"per_s": num_steps * settings.plan.batch_size / wall_s, "cpu_share": total / wall_s}))


@dataclass(frozen=True)
class Side:
    """Some ranks, and the cores that they may use."""

    ranks: int
    cores: int

    def run(self, arguments: list[str]) -> dict[str, float]:
        """Run `rank` under torchrun, and parse what it prints."""
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "torch.distributed.run", "--local-addr", "127.0.0.1"]
            command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node", str(self.ranks)]
            done = subprocess.run(
                [*command, "-m", "benchmarks.ranks", "--rank", *arguments],
                env=os.environ | {"BENCHMARK_OUT": f"{out}/run", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.cores]),
            )
        found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="esmm")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="of the configuration: plan.batch_size=20000")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank(arguments.data, arguments.model, arguments.steps, arguments.set)
        return
    passed = ["--data", arguments.data, "--model", arguments.model, "--steps", str(arguments.steps)]
    passed += ["--set", *arguments.set]
    num_cores = len(os.sched_getaffinity(0))
    several = Side(arguments.ranks, num_cores)
    found: dict[Side, list[dict[str, float]]] = {Side(1, 1): [], Side(1, num_cores): [], several: []}
    for _ in range(arguments.runs):
        for side, figures in found.items():
            figures.append(side.run(passed))
    print(f"{processor()} · {num_cores} cores · {arguments.model} · medians of {arguments.runs} runs")
    print(f"| ranks | cores | impressions a second | CPU a rank had, of a core | {arguments.ranks} ranks are faster |")
    print("|---|---|---|---|---|")
    for side, figures in found.items():
        per_s, share = (statistics.median(row[key] for row in figures) for key in ("per_s", "cpu_share"))
        ratios = [fast["per_s"] / row["per_s"] for fast, row in zip(found[several], figures, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if side != several else ""
        print(f"| {side.ranks} | {side.cores} | {per_s:,.0f} | {share / side.ranks:.2f} | {ratio} |")


if __name__ == "__main__":
    main()
