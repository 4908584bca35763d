"""Where the CPU time of a training step goes, part by part.

    OMP_NUM_THREADS=1 python -m benchmarks.train_profile --data DATASET

One rank, one thread. The clock is the trainer's thread's own CPU time, so that what runs beside it counts for little; a
part's time is exclusive of the parts inside it, and a median over the steps. The feed's threads run beside that one,
and are listed below it.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from benchmarks.train import configured, endless, processor
from training.distributed.world import join
from training.feed import feed
from training.feed import parquet_pages as pages
from training.run.malloc import keep_freed_memory
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

WARM_UP_STEPS = 12
#: Autograd nodes, by their names → part.
NODES = {"SplitPerceptronBackward": "towers, backward", "SplitLookupFunction": "tables: gradient and update (FBGEMM)"}


class Stopwatch:
    """CPU seconds of each part of a step, in one thread, without those of the parts inside it."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since_s = 0.0

    def enter(self, part: str) -> None:
        """Begin `part` inside the current one."""
        self._charge()
        self._inside.append(part)

    def leave(self) -> None:
        """End the part that began last."""
        self._charge()
        self._inside.pop()

    def _charge(self) -> None:
        now_s = time.thread_time()
        if self._inside:
            self.spent_s[self._inside[-1]] += now_s - self._since_s
        self._since_s = now_s

    def around(self, owner: Any, name: str, part: str, roots: Callable[[Any], Sequence[Tensor]] | None = None) -> None:
        """Time the method `name` of `owner`, and the autograd nodes behind the `roots` of its argument."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            for root in roots(arguments[0]) if roots else ():
                self._around_nodes(root)
            self.enter(part)
            try:
                return function(*arguments, **options)
            finally:
                self.leave()

        setattr(owner, name, timed)

    def _around_nodes(self, result: Tensor) -> None:
        """Time the autograd nodes behind `result` that NODES names, in the backward pass."""
        waiting, seen = [result.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            waiting += [behind for behind, _ in node.next_functions]
            for name, part in NODES.items():
                if name in node.name():
                    node.register_prehook(lambda *_, part=part: self.enter(part))
                    node.register_hook(lambda *_: self.leave())


class StepProfiler:
    """A trainer with a stopwatch around the parts of its steps."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.watch = trainer, Stopwatch()
        self._batches = endless(trainer)
        model, around = trainer.model, self.watch.around
        around(model.exchange, "send", "ids: cut")
        around(model.exchange, "look_up", "ids to the kernels, rows back")
        for kernel in model.exchange.kernels:
            around(kernel.module, "forward", "lookup (FBGEMM)")
        around(model, "forward", "the model, but its embeddings and towers, forward")
        for tower in model.towers.children():
            around(tower, "forward", "towers, forward")
        around(model, "differentiate", "autograd of graph and loss", lambda loss: [loss])
        around(model, "learn", "gradients of replicated tables summed")
        around(
            model.exchange,
            "learn",
            "gradients of rows to the kernels",
            lambda pooled: [*pooled.outputs.contexts, *pooled.outputs.impressions],
        )
        around(model.tower_optimizer, "step", "towers' Adam")

    def step(self) -> tuple[int, dict[str, float]]:
        """Take one training step; return its impressions, and the CPU seconds of its parts."""
        watch = self.watch
        watch.spent_s = defaultdict(float)
        watch.enter("the feed's hand-over")
        rank_batch = next(self._batches)
        watch.leave()
        watch.enter("graph and loss, forward; agreement of the ranks")
        self.trainer.step(rank_batch)
        watch.leave()
        return rank_batch.num_impressions, dict(watch.spent_s)


class FeedClock:
    """CPU seconds that the feed spends in its own threads, by stage."""

    def __init__(self, shards: Any) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)
        shards.read = self._timed(shards.read, "feed: read")
        pages.ColumnPages._values = self._timed(pages.ColumnPages._values, "feed: decompress")  # type: ignore[method-assign]
        feed.pack_row_group = self._timed(
            feed.pack_row_group, "feed: decode, check, shuffle, pool", but="feed: decompress"
        )
        feed.collate = self._timed(feed.collate, "feed: collate")

    def _timed(self, function: Callable[..., Any], name: str, but: str | None = None) -> Callable[..., Any]:
        """Wrap `function`: its time goes to `name`, without that of the part `but` inside it."""

        def timed(*arguments: Any, **options: Any) -> Any:
            start_s, inside_s = time.thread_time(), self.spent_s[but] if but else 0.0
            try:
                return function(*arguments, **options)
            finally:
                self.spent_s[name] += time.thread_time() - start_s
                if but:
                    self.spent_s[name] -= self.spent_s[but] - inside_s

        return timed


def measure(settings: TrainSettings, num_steps: int) -> None:
    """Print the table of one network."""
    with join(settings.world) as world, closing(Trainer(settings, world)) as trainer:
        clock = FeedClock(trainer.feed._files)
        profiler = StepProfiler(trainer)
        for _ in range(WARM_UP_STEPS):
            profiler.step()
        clock.spent_s.clear()
        all_s, own_s, num_impressions = time.process_time(), time.thread_time(), 0
        steps: list[dict[str, float]] = []
        for _ in range(num_steps):
            count, spent_s = profiler.step()
            num_impressions += count
            steps.append({part: seconds / count * 1e6 for part, seconds in spent_s.items()})
        own_s, all_s = time.thread_time() - own_s, time.process_time() - all_s
        feed_us = {name: seconds / num_impressions * 1e6 for name, seconds in clock.spent_s.items()}
    feed_us["feed: its threads' queues"] = (all_s - own_s) / num_impressions * 1e6 - sum(feed_us.values())
    medians = {part: statistics.median(row.get(part, 0.0) for row in steps) for part in steps[0]}
    total = sum(medians.values()) + sum(feed_us.values())
    hidden = "-".join(map(str, settings.model.towers.hidden))
    print(f"\n{settings.model.name} {hidden}, batch {settings.plan.batch_size}, {settings.precision}\n")
    print("| part | CPU-µs an impression | share |")
    print("|---|---|---|")
    for rows in (medians, feed_us):
        for part, value in sorted(rows.items(), key=lambda item: -item[1]):
            print(f"| {part} | {value:.2f} | {value / total:.1%} |")
    print(f"| all | {total:.2f} | 100 % |", flush=True)


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
    print(f"{processor()} · torch {torch.__version__} · one rank, one thread · medians of {arguments.steps} steps")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as out:
            measure(configured(arguments.data, f"{out}/run", model, arguments.set), arguments.steps)


if __name__ == "__main__":
    main()
