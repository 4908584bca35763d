"""Training on two hosts beside one: impressions a second of wall time, at two sizes of a batch.

    OMP_NUM_THREADS=1 python -m benchmarks.two_hosts --data DATASET [--batches 5000 65536] [--steps 40] [--runs 3]

One rank, two ranks of one host (which meet in a file and talk over loopback), and a rank on each of two hosts (network
namespaces joined by a cable, `benchmarks.network_hosts`), alternating, over the same global batches; the first steps are
not counted. Both hosts share this machine's cores: the figures compare the ways to talk, and not machines. The cable is a veth
pair. Needs root.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.network_hosts import PORT, TwoHosts
from benchmarks.train import processor

ONE, TWO, HOSTS = "one rank", "two ranks of one host", "a rank on each of two hosts"


def measure(kind: str, arguments: list[str], hosts: TwoHosts, port: int) -> dict[str, float]:
    """Run `benchmarks.ranks --rank` in one of three ways, and parse what rank 0 prints."""
    with tempfile.TemporaryDirectory() as out:
        rank = ["-m", "benchmarks.ranks", "--rank", *arguments]
        more = {"BENCHMARK_OUT": f"{out}/run", "OMP_NUM_THREADS": "1"}
        if kind == HOSTS:
            commands = [hosts.torchrun(host, port=port) + rank for host in (0, 1)]
            environments = [hosts.environment(host) | more for host in (0, 1)]
        else:
            ranks = "1" if kind == ONE else "2"
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--local-addr",
                "127.0.0.1",
                "--nproc-per-node",
                ranks,
            ]
            more |= {
                "PET_RDZV_BACKEND": "c10d",
                "PET_RDZV_CONF": "store_type=file",
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            }
            commands, environments = [command + rank], [os.environ | more]
        started = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            for command, environment in zip(commands, environments, strict=True)
        ]
        said = [process.communicate()[0] for process in started]
        assert not any(process.returncode for process in started), "a rank failed"
    found: dict[str, float] = json.loads("\n".join(said).strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="esmm")
    parser.add_argument("--batches", type=int, nargs="*", default=[5000, 65536])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    print(
        f"{processor()} · {len(os.sched_getaffinity(0))} cores · {arguments.model} · medians of {arguments.runs} runs"
    )
    print(
        "| batch | way | impressions a second | beside one rank | beside two ranks of one host |\n|---|---|---|---|---|"
    )
    port = PORT
    with TwoHosts(is_fast=True) as hosts:
        for batch in arguments.batches:
            passed = ["--data", arguments.data, "--model", arguments.model, "--steps", str(arguments.steps)]
            passed += ["--set", f"plan.batch_size={batch}"]
            found: dict[str, list[float]] = {ONE: [], TWO: [], HOSTS: []}
            for _ in range(arguments.runs):
                for kind, figures in found.items():
                    port += 1
                    figures.append(measure(kind, passed, hosts, port)["per_s"])
            middle = {kind: statistics.median(figures) for kind, figures in found.items()}
            for kind, per_s in middle.items():
                print(
                    f"| {batch:,} | {kind} | {per_s:,.0f} | {per_s / middle[ONE]:.2f} | {per_s / middle[TWO]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
