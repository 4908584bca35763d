"""Where the time of a training step goes, part by part.

    OMP_NUM_THREADS=1 python -m benchmarks.train_profile --data DATASET

One rank, one thread, under torch's profiler, which adds a little to each of some hundred operators of a step (the line
`profiled` against the line `not profiled` says how much). A part's time is exclusive and a median over the steps: wall
time for the trainer's thread, so that a preempted step counts for little, and CPU time, without the profiler, for the
feed's threads, which run beside it.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.train import configured, endless, processor
from training import feed
from training.memory import keep_freed_memory
from training.settings import TrainSettings
from training.trainer import Trainer
from training.world import join

WARM_UP_STEPS = 12
STEP = "step"
#: Ranges that this file opens, and torch's own operators and autograd nodes (by the start of their names) → part.
RANGES = {
    "part: feed": "waiting for the feed",
    "part: network": "the model, but its embeddings and towers, forward",
    "part: embeddings": "embeddings, forward",
    "part: tower": "towers, forward",
    "part: loss": "graph and loss, forward",
    "part: agree": "all-reduce of the losses",
    "part: learn": "autograd and the rest of the backward pass",
}
NODES = {
    "_PerceptronBackward": "towers, backward",
    "_TakeColumnsBackward": "embeddings, backward, but the tables",
    "PooledEmbeddings": "embeddings, backward, but the tables",
    "CommOpGradientScaling": "embeddings, backward, but the tables",
    "CppNode<SplitLookupFunction": "tables: gradient and update",
    "fbgemm::split_embedding_backward": "tables: gradient and update",
    "Optimizer.": "towers' Adam",
    "fbgemm::": "embeddings, forward: FBGEMM's lookup",
}


class Ranges:
    """Opens the ranges of RANGES around parts of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._open: list[record_function] = []
        network = trainer.placed.network.module
        self._around(trainer.placed.network, "part: network")
        for scope in (network.context, network.impression):
            self._around(scope, "part: embeddings")
        for tower in network.towers:
            self._around(tower, "part: tower")

    def _around(self, module: nn.Module, name: str) -> None:
        def enter(*_: Any) -> None:
            self._open.append(record_function(name))
            self._open[-1].__enter__()

        def leave(*_: Any) -> None:
            self._open.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def step(self, batches: Any) -> int:
        """One training step; its number of impressions."""
        with record_function(STEP):
            with record_function("part: feed"):
                step, batch = next(batches)
            with record_function("part: loss"):
                sums = self.trainer._forward(batch, step)
            with record_function("part: agree"):
                self.trainer._agree_on(sums, step)
            with record_function("part: learn"):
                self.trainer._backward(sums, step)
        return batch.num_impressions


def part_of(event: FunctionEvent) -> str:
    """The part that `event`'s own time belongs to: what it is, or what it happened in."""
    above: FunctionEvent | None = event
    while above is not None:
        name = above.name.removeprefix("autograd::engine::evaluate_function: ")
        if name in RANGES:
            return RANGES[name]
        for start, part in NODES.items():
            if name.startswith(start):
                return part
        above = above.cpu_parent
    return "Python between the parts"


def step_of(event: FunctionEvent) -> FunctionEvent | None:
    """The range of the step that `event` happened in."""
    above: FunctionEvent | None = event
    while above is not None and above.name != STEP:
        above = above.cpu_parent
    return above


class FeedClock:
    """CPU seconds of what the feed does in its own threads."""

    def __init__(self, feed_: Any) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)
        feed_._shards.read = self._timed(feed_._shards.read, "feed: read and decode (pyarrow)")
        feed.pack = self._timed(feed.pack, "feed: check, shuffle, pool")
        feed.collate = self._timed(feed.collate, "feed: collate")

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start_s = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.spent_s[name] += time.thread_time() - start_s

        return timed


def measure(settings: TrainSettings, num_steps: int) -> None:
    """Print the table of one network."""
    with ExitStack() as stack:
        world = stack.enter_context(join(settings.world))
        trainer = Trainer(settings, world)
        clock = FeedClock(trainer.feed)
        batches = endless(trainer)
        ranges = Ranges(trainer)
        for _ in range(WARM_UP_STEPS):
            ranges.step(batches)
        plain_s = []
        clock.spent_s.clear()
        cpu_s, own_s, num_impressions = time.process_time(), time.thread_time(), 0
        for _ in range(num_steps):
            start_s = time.perf_counter()
            count = ranges.step(batches)
            num_impressions += count
            plain_s.append((time.perf_counter() - start_s) / count)
        feed_s = dict(clock.spent_s)
        feed_s["feed: its threads' queues"] = (
            time.process_time() - cpu_s - (time.thread_time() - own_s) - sum(feed_s.values())
        )
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(num_steps):
                ranges.step(batches)
        batches.close()
    per_step: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in profiler.events():
        step = step_of(event)
        if step is not None:
            per_step[step.id][part_of(event)] += event.self_cpu_time_total
    batch_size = settings.plan.batch_size
    parts = {part for row in per_step.values() for part in row}
    medians = {part: statistics.median(row[part] for row in per_step.values()) / batch_size for part in parts}
    hidden = "-".join(map(str, settings.model.towers.hidden))
    print(f"\n{settings.model.name} {hidden}, batch {batch_size}, {settings.precision}, {num_steps} steps\n")
    print("| part | µs an impression | share |")
    print("|---|---|---|")
    total = sum(medians.values())
    for part, value in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"| {part} | {value:.2f} | {value / total:.1%} |")
    print(f"| the trainer's thread, profiled | {total:.2f} | 100.0% |")
    print(f"| the trainer's thread, not profiled | {statistics.median(plain_s) * 1e6:.2f} | |")
    for name, spent in sorted(feed_s.items()):
        print(f"| {name} | {spent * 1e6 / num_impressions:.2f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["esmm", "esmm_wide"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--set", nargs="*", default=[], help="of the configuration: precision=bf16 plan.batch_size=1000"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{processor()} · torch {torch.__version__} · one rank, one thread")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as out:
            measure(configured(arguments.data, f"{out}/run", model, arguments.set), arguments.steps)


if __name__ == "__main__":
    main()
