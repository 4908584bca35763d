"""Training by several ranks beside one, on one machine: impressions a second of wall time, and the ratio.

    OMP_NUM_THREADS=1 python -m benchmarks.ranks --data DATASET [--ranks 2]

One rank and several in turn, each under torchrun, over the same global batches; the first steps are not counted. The
ratio means something only where there is a free core for each rank: the CPU share printed beside it says whether there
was (1.0: every rank had a whole core; its feed's threads count too, so above 1 is possible).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from benchmarks.train import configured, endless, processor
from training.memory import keep_freed_memory
from training.trainer import Trainer
from training.world import join

WARM_UP_STEPS = 12


def rank(data: str, model: str, num_steps: int, overrides: list[str]) -> None:
    """In each rank: train, and print from the first what it took."""
    torch.set_num_threads(1)
    keep_freed_memory()
    out = os.environ["BENCHMARK_OUT"]
    settings = configured(data, out, model, overrides)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        shares = endless(trainer)
        for _ in range(WARM_UP_STEPS):
            trainer.step(next(shares))
        world.barrier()
        start_s, cpu_s = time.monotonic(), time.process_time()
        for _ in range(num_steps):
            trainer.step(next(shares))
        world.barrier()
        wall_s, cpu_s = time.monotonic() - start_s, time.process_time() - cpu_s
        shares.close()
        total = world.sum(torch.tensor([cpu_s], dtype=torch.float64, device=world.device)).item()
        if world.rank == 0:
            print(json.dumps({"per_s": num_steps * settings.plan.batch_size / wall_s, "cpu_share": total / wall_s}))


def run(num_ranks: int, arguments: list[str]) -> dict[str, float]:
    """What `rank` printed, under torchrun with `num_ranks`."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "torch.distributed.run", "--local-addr", "127.0.0.1", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node", str(num_ranks), "-m", "benchmarks.ranks"]
        environment = os.environ | {"BENCHMARK_OUT": f"{out}/run", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--rank", *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
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
    found: dict[int, list[dict[str, float]]] = {1: [], arguments.ranks: []}
    for _ in range(arguments.runs):
        for num_ranks, figures in found.items():
            figures.append(run(num_ranks, passed))
    print(
        f"{processor()} · {len(os.sched_getaffinity(0))} cores · {arguments.model} · medians of {arguments.runs} runs"
    )
    print("| ranks | impressions a second | CPU a rank had, of a core |")
    print("|---|---|---|")
    for num_ranks, figures in found.items():
        per_s, share = (statistics.median(row[key] for row in figures) for key in ("per_s", "cpu_share"))
        print(f"| {num_ranks} | {per_s:,.0f} | {share / num_ranks:.2f} |")
    ratios = [several["per_s"] / one["per_s"] for one, several in zip(*found.values(), strict=True)]
    print(f"\nratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
