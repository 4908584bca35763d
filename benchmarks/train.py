"""CPU microseconds per impression of training, end to end, beside the floor that the network alone sets.

    OMP_NUM_THREADS=1 python -m benchmarks.train --data DATASET

For each network, in one run and alternating: end to end (read, decode, collate, look up, towers, loss, backward,
optimizers; every thread's CPU time counts) and twice the floor, that is the same towers with Adam on random dense inputs of
the same contexts and impressions and a plain sum as loss: with our towers, and with torch's own nn.Linear, its first layer
split in the same way.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from jobs.entry import typed
from training.batch import Batch
from training.memory import keep_freed_memory
from training.settings import TrainSettings
from training.towers import Tower, TowerSettings
from training.trainer import Trainer
from training.world import join

STEPS_PER_ROUND = 8


class PlainTower(nn.Module):
    """What `Tower` computes, from nn.Linear."""

    def __init__(self, context_width: int, impression_width: int, hidden: list[int]) -> None:
        super().__init__()
        self.context = nn.Linear(context_width, hidden[0])
        self.impression = nn.Linear(impression_width, hidden[0], bias=False)
        layers: list[nn.Module] = []
        for narrow, wide in zip(hidden, [*hidden[1:], 1], strict=True):
            layers += [nn.ReLU(), nn.Linear(narrow, wide)]
        self.rest = nn.Sequential(*layers)

    def forward(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor, _key: None) -> Tensor:
        """→ logit [B]."""
        return self.rest(self.context(context_CD)[index_B] + self.impression(impression_BD)).squeeze(1)


class Floor:
    """Towers alone, on random inputs."""

    def __init__(self, towers: list[nn.Module], context_width: int, impression_width: int) -> None:
        self.towers = towers
        self.widths = (context_width, impression_width)
        parameters = [parameter for tower in towers for parameter in tower.parameters()]
        self.adam = torch.optim.Adam(parameters, fused=True)
        self.cpu_s = 0.0

    def step(self, batch: Batch) -> None:
        """Forward, backward and Adam on the shapes of `batch`."""
        context_CD = torch.randn(batch.num_contexts, self.widths[0], requires_grad=True)
        impression_BD = torch.randn(batch.num_impressions, self.widths[1], requires_grad=True)
        start_s = time.thread_time()
        logits = [tower(context_CD, impression_BD, batch.context_of_impression, None) for tower in self.towers]
        self.adam.zero_grad()
        torch.stack([logit.sum() for logit in logits]).sum().backward()
        self.adam.step()
        self.cpu_s += time.thread_time() - start_s


def endless(trainer: Trainer) -> Iterator[tuple[int, Batch]]:
    while True:
        yield from trainer._batches()


def train_step(trainer: Trainer, step: int, batch: Batch) -> None:
    sums = trainer._forward(batch, step)
    trainer._agree_on(sums, step)
    trainer._backward(sums, step)


def measure(settings: TrainSettings, num_rounds: int) -> list[dict[str, float]]:
    """CPU-µs per impression of each side, and the share of time waiting for data, in each round after the first."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        network = trainer.placed.network.module
        widths, hidden = network.widths, settings.model.towers.hidden
        ours = Floor([Tower(str(edge), *widths, TowerSettings(hidden)) for edge in network.edges], *widths)
        plain = Floor([PlainTower(*widths, hidden) for _ in network.edges], *widths)
        batches, rounds = endless(trainer), []
        for _ in range(num_rounds + 1):
            ours.cpu_s = plain.cpu_s = 0.0
            recent: list[Batch] = []
            cpu_s, wall_s, waited_s = time.process_time(), time.monotonic(), trainer.feed.wait_s
            for _ in range(STEPS_PER_ROUND):
                step, batch = next(batches)
                train_step(trainer, step, batch)
                recent.append(batch)
            waiting_share = (trainer.feed.wait_s - waited_s) / (time.monotonic() - wall_s)
            floors_s = time.thread_time()
            for batch in recent:
                ours.step(batch)
                plain.step(batch)
            floors_s = time.thread_time() - floors_s
            # The feed's threads run ahead beside the floors, so the whole round's CPU time is taken, less the floors'.
            end_to_end_s = time.process_time() - cpu_s - floors_s
            count = sum(batch.num_impressions for batch in recent) / 1e6
            rounds.append(
                {
                    "end to end": end_to_end_s / count,
                    "floor": ours.cpu_s / count,
                    "floor, nn.Linear": plain.cpu_s / count,
                    "waiting": waiting_share,
                }
            )
        batches.close()
    return rounds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["esmm", "esmm_wide"])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as jobs.train does; the floors gain from it as much
    print(f"{processor()} · torch {torch.__version__} · one rank, one thread · medians of {arguments.rounds} rounds")
    print(
        "| network | batch | end to end, CPU-µs an impression | floor | ratio | nn.Linear's floor | ratio | waiting |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as out, initialize_config_module("conf", version_base="1.3"):
            settings = typed(
                TrainSettings, compose("train", [f"data={arguments.data}", f"out={out}/run", f"model={model}"])
            )
            rounds = measure(settings, arguments.rounds)
        end_to_end, floor, plain, waiting = (statistics.median(row[key] for row in rounds) for key in rounds[0])
        hidden = "-".join(map(str, settings.model.towers.hidden))
        print(
            f"| {model} {hidden} | {settings.plan.batch_size} | {end_to_end:.1f} | {floor:.1f} | {end_to_end / floor:.2f} "
            f"| {plain:.1f} | {end_to_end / plain:.2f} | {waiting:.1%} |"
        )


def processor() -> str:
    """The machine, in words."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
