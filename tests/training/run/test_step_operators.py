"""How many operators a training step dispatches on the code path of a GPU, which a CPU takes here, and how often it waits."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.entry import compose
from pipeline.errors import InputError
from training.distributed.world import join
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

#: Operators that bring a number or a size to the host, and so wait for a device.
WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.repeat_interleave"}
#: Methods that do, beside those that dispatch one of these.
READING = ("tolist", "cpu")


class Operators(TorchDispatchMode):
    """Counts what is dispatched, views among them, but the profiler's marks.

    Tensors `of_host`, which FBGEMM keeps in the host's memory on a GPU too, are left out.
    """

    def __init__(self, of_host: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._of_host = {tensor.data_ptr() for tensor in of_host}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        if not name.startswith("profiler.") and not self._is_of_host(args):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    def _is_of_host(self, args: tuple[Any, ...]) -> bool:
        return bool(args) and isinstance(args[0], Tensor) and args[0].data_ptr() in self._of_host


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("operators") / "data"
    write_tiny_dataset(path, num_contexts=120, daction=True)
    return path


def settings_of(data: Path, out: Path, *overrides: str) -> TrainSettings:
    given = [f"data={data}", f"out={out}", "plan.batch_size=64", "world.device=cpu", "world.towers=stacked"]
    return compose("train", TrainSettings, [*given, "validation.split=null", *overrides])


@contextmanager
def reads_counted(of_host: Sequence[Tensor] = ()) -> Iterator[Counter[str]]:
    """Count the calls of READING, but those of tensors `of_host`."""
    counts: Counter[str] = Counter()
    places = {tensor.data_ptr() for tensor in of_host}
    originals = {name: getattr(Tensor, name) for name in READING}

    def counting(name: str) -> Any:
        def read(self: Tensor, *arguments: Any, **options: Any) -> Any:
            counts[name] += self.data_ptr() not in places
            return originals[name](self, *arguments, **options)

        return read

    try:
        for name in READING:
            setattr(Tensor, name, counting(name))
        yield counts
    finally:
        for name, function in originals.items():
            setattr(Tensor, name, function)


def counted(settings: TrainSettings) -> tuple[Counter[str], Counter[str]]:
    """Count the operators and the reads of one step, after some."""
    with join(settings.world) as world, closing(Trainer(settings, world)) as trainer:
        kernels: list[Any] = [kernel.module for kernel in trainer.model.exchange.kernels]
        of_host = [tensor for kernel in kernels for tensor in (kernel.iter_cpu, kernel.feature_dims)]
        for rank_batch in trainer.batches():
            with Operators(of_host) as operators, reads_counted(of_host) as reads:
                trainer.step(rank_batch)
            if rank_batch.step == 2:
                break
    return operators.counts, reads


@pytest.mark.parametrize(("model", "most"), [("esmm", 240), ("esm2", 520)])
def test_a_step_dispatches_few_operators_and_reads_one_tensor(
    data: Path, tmp_path: Path, model: str, most: int
) -> None:
    """A step that goes forwards, sums the losses, goes backwards and learns; what is read is the agreement of the ranks."""
    operators, reads = counted(settings_of(data, tmp_path / "run", f"model={model}"))
    assert sum(operators.values()) <= most, operators.most_common()
    assert not WAITING & operators.keys(), operators
    assert +reads == {"tolist": 1}


def test_what_waits_is_seen(data: Path, tmp_path: Path) -> None:
    """The counters see a norm that is read, as clipping by an if would do."""
    with Operators() as operators, reads_counted() as reads:
        norm = torch.ones(3).norm()
        assert float(norm) > 1
        assert norm.cpu().tolist() > 1
    assert operators.counts["aten._local_scalar_dense"] == 1
    assert reads == {"tolist": 1, "cpu": 1}


@pytest.mark.parametrize("overrides", [["model=esm2"], ["model=esmm_ns"], ["model=esmm", "precision=bf16"]])
def test_training_the_towers_in_one_pass_equals_one_by_one(data: Path, tmp_path: Path, overrides: list[str]) -> None:
    """The losses of some steps: with dropout, with tables of each head's own, in bfloat16."""
    found = {}
    for how in ("each", "stacked"):
        settings = settings_of(data, tmp_path / how, *overrides, f"world.towers={how}", "model.towers.hidden=[32,16]")
        with join(settings.world) as world, closing(Trainer(settings, world)) as trainer:
            found[how] = take_steps(trainer, 6)
    tolerance = 2e-2 if "precision=bf16" in overrides else 1e-5
    np.testing.assert_allclose(found["stacked"], found["each"], rtol=tolerance)
    assert found["stacked"][0] != found["stacked"][5]


def test_towers_on_a_body_are_not_stacked(data: Path, tmp_path: Path) -> None:
    settings = settings_of(data, tmp_path / "run", "model=mmoe")
    with join(settings.world) as world, pytest.raises(InputError, match=r"world\.towers=stacked .* has mmoe; use each"):
        Trainer(settings, world)
