"""CPU microseconds per impression of training, end to end, beside the floor that the network alone sets.

    OMP_NUM_THREADS=1 python -m benchmarks.train --data DATASET

For each network, in one run and alternating, over one epoch: end to end (read, decode, collate, look up, towers, loss,
backward, optimizers; every thread's CPU time counts) in fp32 and in bf16, and the validation AUC that each came to; and
twice the floor, that is the same towers with Adam on random dense inputs of the same contexts and impressions and a
plain sum as loss: with our towers, and with torch's own nn.Linear, its first layer split in the same way.
"""

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import Tensor, nn

from jobs.entry import compose
from training.distributed.rank_batches import RankBatch
from training.distributed.world import World, join
from training.feed.batch import Batch
from training.model.settings import TowerSettings
from training.model.towers import Tower
from training.run.malloc import keep_freed_memory
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

STEPS_PER_ROUND = 8


class PlainTower(nn.Module):
    """The computation of `Tower`, by nn.Linear."""

    def __init__(self, context_width: int, impression_width: int, hidden: list[int]) -> None:
        super().__init__()
        self.context = nn.Linear(context_width, hidden[0])
        self.impression = nn.Linear(impression_width, hidden[0], bias=False)
        layers: list[nn.Module] = []
        for narrow, wide in zip(hidden, [*hidden[1:], 1], strict=True):
            layers += [nn.ReLU(), nn.Linear(narrow, wide)]
        self.rest = nn.Sequential(*layers)

    def forward(self, context_CD: Tensor, impression_BD: Tensor, index_B: Tensor, _key: None) -> Tensor:
        """Return logits [B]."""
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


def endless(trainer: Trainer) -> Iterator[RankBatch]:
    while True:
        yield from trainer.batches()


class EndToEnd:
    """A trainer in its first epoch, and what its last round cost."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.batches = trainer.batches()
        self.cpu_s = self.waiting_share = 0.0

    def round(self) -> list[Batch]:
        """Train on some batches."""
        recent: list[Batch] = []
        cpu_s, wall_s, waited_s = time.process_time(), time.monotonic(), self.trainer.feed.wait_s
        for rank_batch in itertools.islice(self.batches, STEPS_PER_ROUND):
            self.trainer.step(rank_batch)
            recent.append(rank_batch.batch)
        # The other trainer's threads and this one's run ahead a little in each other's rounds, and as much in each.
        self.cpu_s = time.process_time() - cpu_s
        self.waiting_share = (self.trainer.feed.wait_s - waited_s) / (time.monotonic() - wall_s)
        return recent

    def finish(self, world: World) -> dict[str, float | None]:
        """Train the rest of the epoch, and validate."""
        for rank_batch in self.batches:
            self.trainer.step(rank_batch)
        assert self.trainer.validation is not None, "the dataset has no validation split"
        return self.trainer.validation.figures(self.trainer.model, world)


def measure(settings_of: dict[str, TrainSettings]) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
    """Train an epoch in each precision; return medians over its rounds, and the validation figures by precision."""
    some = settings_of["fp32"]
    with join(some.world) as world, ExitStack() as stack:
        sides = {
            name: EndToEnd(stack.enter_context(closing(Trainer(settings, world))))
            for name, settings in settings_of.items()
        }
        network, hidden = sides["fp32"].trainer.model.network, some.model.towers.hidden
        widths, heads = network.widths, sides["fp32"].trainer.graph.heads
        ours = Floor([Tower(str(edge), *widths, TowerSettings(hidden)) for edge in heads], *widths)
        plain = Floor([PlainTower(*widths, hidden) for _ in heads], *widths)
        rounds: list[dict[str, float]] = []
        for number in range(sides["fp32"].trainer.plan.num_steps // STEPS_PER_ROUND):
            ours.cpu_s = plain.cpu_s = 0.0
            order = list(sides.values())
            for side in order if number % 2 else reversed(order):
                recent = side.round()
            for batch in recent:
                ours.step(batch)
                plain.step(batch)
            count = sum(batch.num_impressions for batch in recent) / 1e6
            row = {name: side.cpu_s / count for name, side in sides.items()}
            row |= {"floor": ours.cpu_s / count, "nn.Linear": plain.cpu_s / count}
            row |= {
                "ratio": row["fp32"] / row["floor"],
                "nn.Linear ratio": row["fp32"] / row["nn.Linear"],
                "gain": row["fp32"] / row["bf16"],
                "waiting": sides["fp32"].waiting_share,
            }
            rounds.append(row)
        warm = rounds[1:]
        medians = {key: statistics.median(row[key] for row in warm) for key in warm[0]}
        return medians, {name: side.finish(world) for name, side in sides.items()}


def configured(data: str, out: str, model: str, overrides: list[str]) -> TrainSettings:
    """Compose the settings of jobs.train."""
    given = [f"data={data}", f"out={out}", f"model={model}", *overrides]
    return compose("train", TrainSettings, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["esmm", "esmm_wide"])
    parser.add_argument("--set", nargs="*", default=[], help="of the configuration: plan.batch_size=1000")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as jobs.train does; the floors gain from it as much
    print(f"{processor()} · torch {torch.__version__} · one rank, one thread · medians of the rounds of one epoch")
    print(
        "| network | batch | fp32, CPU-µs an impression | floor | ratio | nn.Linear's floor | ratio | waiting | bf16 "
        "| fp32 / bf16 | validation AUC, fp32 | bf16 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as out:
            settings_of = {
                precision: configured(
                    arguments.data, f"{out}/{precision}", model, [f"precision={precision}", *arguments.set]
                )
                for precision in ("fp32", "bf16")
            }
            found, figures = measure(settings_of)
        hidden = "-".join(map(str, settings_of["fp32"].model.towers.hidden))
        print(
            f"| {model} {hidden} | {settings_of['fp32'].plan.batch_size} | {found['fp32']:.1f} | {found['floor']:.1f} "
            f"| {found['ratio']:.2f} | {found['nn.Linear']:.1f} | {found['nn.Linear ratio']:.2f} | {found['waiting']:.1%} "
            f"| {found['bf16']:.1f} | {found['gain']:.2f} | {aucs(figures['fp32'])} | {aucs(figures['bf16'])} |"
        )


def aucs(figures: dict[str, float | None]) -> str:
    """Format the AUCs among `figures`."""
    return ", ".join(
        f"{name.removesuffix('_auc').upper()} {value:.4f}"
        for name, value in figures.items()
        if name.endswith("_auc") and value is not None
    )


def processor() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
