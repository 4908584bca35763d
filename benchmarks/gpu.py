"""The trainer on one GPU beside plain PyTorch and TorchRec's own pipeline: speed, kernels and waits of a step, bits.

    python -m benchmarks.gpu                          # generates Ali-CCP's shape; five minutes on a GPU with 16 cores
    python -m benchmarks.gpu data=DATASET sizes=5000,20000,65536 seconds=2
    python -m benchmarks.gpu device=cpu data=DATASET sizes=200 seconds=0.1 hidden=16,8     # a rehearsal

Everything runs in this process, on the same batches. Each line is printed as it is measured; a part that fails says so, and the
others follow. What `limit_s=290` leaves no time for is named. `parts=` chooses some of steps, fed, peers, profile, loss, bits.
"""

import gc
import itertools
import os
import platform
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.feed import generate
from benchmarks.peers.on_device import FlatBatch, flatten, plain_steps, torchrec_steps
from benchmarks.train import configured, endless
from pipeline.dataset.kinds import INDEX
from training.checkpoint.files import checkpoint_paths
from training.distributed.rank_batches import RankBatch
from training.distributed.world import World, join
from training.run.malloc import keep_freed_memory
from training.run.trainer import Trainer

PARTS = ("steps", "fed", "peers", "profile", "loss", "bits")
WARM_UP_STEPS, PROFILED_STEPS, COMPARED_STEPS = 4, 6, 20
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


@dataclass(frozen=True)
class Options:
    """The words of the command line."""

    data: str
    scratch: Path
    device: str = "cuda"
    sizes: tuple[int, ...] = (5000, 20000, 65536)
    hidden: tuple[int, ...] = (200, 80)
    seconds: float = 1.5
    parts: tuple[str, ...] = PARTS
    end_s: float = float("inf")  # by time.monotonic()


class Bench:
    """The parts, each a method that yields lines."""

    def __init__(self, options: Options, world: World) -> None:
        self.options, self.world = options, world
        self._numbers = itertools.count()

    def trainer(self, model: str, batch_size: int, *overrides: str, device: str | None = None) -> Trainer:
        """Open a trainer of its own, that never validates."""
        hidden = f"model.towers.hidden=[{','.join(map(str, self.options.hidden))}]"
        given = [
            f"world.device={device or self.options.device}",
            f"plan.batch_size={batch_size}",
            "validation.split=null",
        ]
        given += ["epochs=1000"] if not any(word.startswith("epochs=") for word in overrides) else []
        out = str(self.options.scratch / f"run-{next(self._numbers)}")
        words = [*given, *([hidden] if model == "esmm" else []), *overrides]
        world = self.world if device is None else World(0, 1, torch.device(device), self.world.num_cores)
        return Trainer(configured(self.options.data, out, model, words), world)

    def speed(self, step: Callable[[], int]) -> tuple[float, float]:
        """Return milliseconds a step and impressions a second."""
        for _ in range(WARM_UP_STEPS):
            step()
        self._wait()
        start_s, steps, count = time.monotonic(), 0, 0
        while time.monotonic() - start_s < self.options.seconds or steps < WARM_UP_STEPS:
            count += step()
            steps += 1
        self._wait()
        spent_s = time.monotonic() - start_s
        return 1e3 * spent_s / steps, count / spent_s

    def _wait(self) -> None:
        if self.options.device == "cuda":
            torch.cuda.synchronize()

    def steps(self) -> Iterator[str]:
        """Time steps of the trainer on batches that lie on the device."""
        yield "| batches on the device | B | ms a step | impressions/s | memory, GB |"
        yield "|---|---|---|---|---|"
        cases: list[tuple[str, tuple[str, ...]]] = [
            ("esmm", ()),
            ("esmm", ("world.towers=stacked",)),
            ("esmm", ("precision=tf32",)),
            ("esmm", ("precision=bf16",)),
            ("esmm", ("world.deterministic=false",)),
            ("esm2", ()),
        ]
        middle = [(size, cases[0]) for size in self.options.sizes[1:-1]]
        ends = itertools.product(dict.fromkeys((self.options.sizes[-1], self.options.sizes[0])), cases)
        for batch_size, (model, overrides) in [*middle, *ends]:
            if time.monotonic() > self.options.end_s:
                yield f"| {' '.join([model, *overrides])} | {batch_size:,} | no time left | | |"
                continue
            deterministic = "world.deterministic=false" not in overrides
            torch.use_deterministic_algorithms(deterministic and self.options.device == "cuda", warn_only=True)
            with closing(self.trainer(model, batch_size, *overrides)) as trainer:
                milliseconds, per_s = self.speed(resident_steps(trainer))
            name = " ".join([model, *overrides])
            yield f"| {name} | {batch_size:,} | {milliseconds:.2f} | {per_s:,.0f} | {self._memory_gb():.1f} |"

    def _memory_gb(self) -> float:
        if self.options.device != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 1e9
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return peak

    def profile(self) -> Iterator[str]:
        """Count operators, kernels, copies and waits of a step."""
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.options.device == "cuda" else [])
        for model, batch_size in itertools.product(("esmm", "esm2"), dict.fromkeys(self.options.sizes[::2])):
            with closing(self.trainer(model, batch_size)) as trainer:
                step = resident_steps(trainer)
                for _ in range(WARM_UP_STEPS):
                    step()
                self._wait()
                with profile(activities=activities) as profiled:
                    start_s = time.monotonic()
                    for _ in range(PROFILED_STEPS):
                        step()
                    self._wait()
                    spent_s = time.monotonic() - start_s
            yield f"{model} B={batch_size:,}: {described(profiled, spent_s)}"

    def fed(self) -> Iterator[str]:
        """Time training from Parquet."""
        for batch_size in self.options.sizes:
            with closing(self.trainer("esmm", batch_size)) as trainer:
                batches = endless(trainer)

                def step(batches: Iterator[RankBatch] = batches, trainer: Trainer = trainer) -> int:
                    rank_batch = next(batches)
                    trainer.step(rank_batch)
                    return rank_batch.num_impressions

                waited_s, start_s = trainer.feed.wait_s, time.monotonic()
                _, per_s = self.speed(step)
                waiting = (trainer.feed.wait_s - waited_s) / (time.monotonic() - start_s)
            yield f"fed from Parquet, B={batch_size:,}: {per_s:,.0f} impressions/s, waiting for data {waiting:.0%}"

    def peers(self) -> Iterator[str]:
        """Time plain PyTorch and TorchRec's pipeline on the same impressions, flat."""
        hidden = self.options.hidden
        for batch_size in self.options.sizes:
            with closing(self.trainer("esmm", batch_size)) as trainer:
                fields = [trainer.manifest.fields_of(scope, INDEX) for scope in ("context", "impression")]
                names = [[entry.name for entry in of_scope] for of_scope in fields]
                num_rows = [entry.num_rows for of_scope in fields for entry in of_scope]
                held = [flatten(each.batch, names) for each in full_batches(trainer)]
            sides: dict[str, Callable[[Sequence[FlatBatch], Sequence[int], Sequence[int]], Callable[[], int]]] = {
                "plain PyTorch, one table, Adam": plain_steps,
                "TorchRec, TrainPipelineSparseDist": torchrec_steps,
            }
            for name, make in sides.items():
                milliseconds, per_s = self.speed(make(held, num_rows, hidden))
                memory = f", {self._memory_gb():.1f} GB"
                yield f"{name}, flat batches, B={batch_size:,}: {milliseconds:.2f} ms a step, {per_s:,.0f} impressions/s{memory}"

    def loss(self) -> Iterator[str]:
        """Compare the losses of the first steps with those of a CPU."""
        size, found = self.options.sizes[0], []
        for device in (None, "cpu"):
            with closing(self.trainer("esmm", size, "world.towers=auto", device=device)) as trainer:
                steps = itertools.islice(trainer.batches(), COMPARED_STEPS)
                found.append([trainer.step(rank_batch).losses for rank_batch in steps])
        differences = [
            max(abs(a - b) / abs(b) for a, b in zip(*pair, strict=True)) for pair in zip(*found, strict=True)
        ]
        yield (
            f"losses of {self.options.device} and of a CPU, B={size:,}: relative difference {differences[0]:.1e} at the first step, "
            f"{max(differences):.1e} within {len(differences)}"
        )

    def bits(self) -> Iterator[str]:
        """Train an epoch twice, and once more with a resume after it: the same bytes in the checkpoints?"""
        size = self.options.sizes[-1]
        torch.use_deterministic_algorithms(self.options.device == "cuda", warn_only=True)
        outs = []
        for epochs in ((2,), (2,), (1, 2)):
            out = self.options.scratch / f"bits-{next(self._numbers)}"
            outs.append(out)
            for number in epochs:
                words = [f"world.device={self.options.device}", f"plan.batch_size={size}", "validation.split=null"]
                settings = configured(self.options.data, str(out), "esmm", [*words, f"epochs={number}"])
                Trainer(settings, self.world).fit()
        whole, *others = (checkpoint_paths(out)[0] for out in outs)
        for name, other in zip(("the same command again", "stopped after an epoch and resumed"), others, strict=True):
            files = sorted(path.name for path in whole.glob("*.safetensors"))
            different = [file for file in files if (whole / file).read_bytes() != (other / file).read_bytes()]
            yield f"{name}: {len(files)} files of the last checkpoint, {', '.join(different) or 'none'} different"


def full_batches(trainer: Trainer, most: int = 6) -> list[RankBatch]:
    """Return some whole batches, on the device; the last one of an epoch is shorter."""
    whole = (each for each in endless(trainer) if each.num_impressions == trainer.plan.batch_size)
    if trainer.plan.num_impressions < 2 * trainer.plan.batch_size:
        whole = endless(trainer)
    return list(itertools.islice(whole, most))


def resident_steps(trainer: Trainer) -> Callable[[], int]:
    """Return a function that takes one step on a batch that lies on the device, and says over how many impressions."""
    turns = itertools.cycle(full_batches(trainer))

    def step() -> int:
        held = next(turns)
        ids = trainer.model.exchange.send(held.batch)
        trainer.step(RankBatch(held.step, held.batch, held.num_impressions, ids, None))
        return held.num_impressions

    return step


def described(profiled: Any, spent_s: float) -> str:
    """Say what a step consists of."""
    events = profiled.events()
    on_host = Counter(event.name for event in events if event.device_type == DeviceType.CPU)
    operators = sum(number for name, number in on_host.items() if "::" in name) / PROFILED_STEPS
    reads = on_host["aten::_local_scalar_dense"] / PROFILED_STEPS
    text = f"{operators:.0f} operators (nested ones too), {reads:.0f} reads of a number"
    on_device = [event for event in events if event.device_type == DeviceType.CUDA and "#" not in event.name]
    if not on_device:
        return text
    kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    busy_us, end = 0.0, 0.0
    for event in sorted(kernels, key=lambda event: event.time_range.start):
        busy_us += max(0.0, event.time_range.end - max(end, event.time_range.start))
        end = max(end, event.time_range.end)
    waits = sum(on_host[name] for name in WAITS) / PROFILED_STEPS
    copies = len(on_device) - len(kernels)
    return (
        f"{text}, {waits:.1f} waits for the GPU, {len(kernels) / PROFILED_STEPS:.0f} kernels, {copies / PROFILED_STEPS:.0f} copies and "
        f"fills, GPU busy {busy_us / 1e6 / spent_s:.0%}"
    )


def machine(device: str) -> str:
    """Describe the machine and what is installed."""
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or platform.machine()
    versions = []
    for package in ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "triton"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{name} · {len(os.sched_getaffinity(0))} cores · {', '.join(versions)}"


def main() -> None:
    keep_freed_memory()
    measure(dict(argument.split("=", 1) for argument in sys.argv[1:]))


def measure(words: dict[str, str]) -> None:
    """Run the parts, and print their lines."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = words.get("data", str(scratch / "dataset"))
        if "data" not in words:
            generate(Path(data), num_row_groups=int(words.get("row_groups", 48)), daction=True)
        numbers = {name: tuple(map(int, words[name].split(","))) for name in ("sizes", "hidden") if name in words}
        given = {"device": words.get("device", "cuda"), "seconds": float(words.get("seconds", 1.5)), **numbers}
        parts = tuple(words.get("parts", ",".join(PARTS)).split(","))
        options = Options(data, scratch, parts=parts, end_s=began_s + float(words.get("limit_s", 290)), **given)
        print(machine(options.device), flush=True)
        settings = configured(data, str(scratch / "world"), "esmm", [f"world.device={options.device}"])
        with join(settings.world) as world:
            bench = Bench(options, world)
            for part in options.parts:
                print(f"\n[{part}, after {time.monotonic() - began_s:.0f} s]", flush=True)
                if time.monotonic() > options.end_s:
                    print("no time left", flush=True)
                    continue
                try:
                    for line in getattr(bench, part)():
                        print(line, flush=True)
                except Exception as error:
                    traceback.print_exc()
                    print(f"{part} failed: {type(error).__name__} {str(error).splitlines()[:1]}", flush=True)
    print(f"\n{time.monotonic() - began_s:.0f} s in all")


if __name__ == "__main__":
    main()
