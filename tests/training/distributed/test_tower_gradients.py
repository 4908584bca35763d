"""The towers' gradients under DistributedDataParallel: sums in the order of the ranks, whenever a process started."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps, tiny_settings
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.distributed.tower_gradients import data_parallel, sum_in_rank_order
from training.distributed.world import WorldSettings, join
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

SIZES = (1, 2, 3, 1000, 65_537)  # some shorter than the number of ranks, some that do not divide by it


def drawn(rank: int, size: int) -> np.ndarray:
    """A rank's gradient, of numbers whose sum depends on the order."""
    random = np.random.default_rng([rank, size])
    return (random.normal(size=size) * 10.0 ** random.integers(-4, 4, size=size)).astype(np.float32)


def summed() -> Arrays:
    with join(WorldSettings(device="cpu")) as world:
        return {
            str(size): sum_in_rank_order(torch.from_numpy(drawn(world.rank, size)), world).numpy() for size in SIZES
        }


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_every_rank_gets_the_sum_in_the_order_of_the_ranks_to_the_bit(tmp_path: Path, num_ranks: int) -> None:
    ranks = run_ranks(summed, num_ranks, tmp_path)
    for size in SIZES:
        expected = drawn(0, size)
        for rank in range(1, num_ranks):
            expected = expected + drawn(rank, size)
        for found in ranks:
            np.testing.assert_array_equal(found[str(size)], expected)


def gradients_of_step_3(first_step: int, is_stock: bool) -> Arrays:
    """The gradients of one step, in a process whose first step is `first_step`; whether DDP has rebuilt its buckets."""
    with join(WorldSettings(device="cpu")) as world:
        torch.manual_seed(0)
        towers = nn.ModuleList([nn.Sequential(nn.Linear(414, 80), nn.ReLU(), nn.Linear(80, 1)) for _ in range(3)])

        class Stack(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.towers = towers

            def forward(self, inputs_BD: torch.Tensor) -> torch.Tensor:
                return torch.cat([tower(inputs_BD) for tower in self.towers])

        parallel = DistributedDataParallel(Stack()) if is_stock else data_parallel(Stack(), world)
        for step in range(first_step, 4):
            parallel.zero_grad()
            inputs_BD = torch.randn(50, 414, generator=torch.Generator().manual_seed(step * world.size + world.rank))
            parallel(inputs_BD).square().sum().backward()
        found = {name: parameter.grad.numpy() for name, parameter in towers.named_parameters()}
        return found | {"rebuilt": np.array(parallel._get_ddp_logging_data().get("has_rebuilt_buckets", 0))}


def num_different(folder: Path, is_stock: bool) -> int:
    """The values of a gradient that differ between a process that began before the step and one that begins with it."""
    early, late = (run_ranks(gradients_of_step_3, 3, folder / f"{first}", first, is_stock)[0] for first in (0, 3))
    assert (early.pop("rebuilt"), late.pop("rebuilt")) == (1, 0)
    return sum(int((early[name] != late[name]).sum()) for name in early)


def test_gradients_do_not_depend_on_the_step_at_which_a_process_started_as_those_of_stock_ddp_do(
    tmp_path: Path,
) -> None:
    """What a resumed run needs to end with the same bits. On three ranks: a sum of two is the same in both orders."""
    assert num_different(tmp_path / "ours", is_stock=False) == 0
    assert num_different(tmp_path / "stock", is_stock=True) > 0


def wrapped(settings: TrainSettings) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        take_steps(trainer, 1)
        parallel = trainer.model.network.towers
        assert isinstance(parallel, DistributedDataParallel)
        assert parallel.module is trainer.model.towers
        return {name: value.grad.numpy() for name, value in trainer.model.towers.named_parameters()}


def test_the_trainers_towers_are_in_ddp_and_every_rank_has_the_same_gradient(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=60)
    first, *others = run_ranks(wrapped, 4, tmp_path, tiny_settings(tmp_path / "data", tmp_path / "run"))
    for other in others:
        for name, gradient in first.items():
            np.testing.assert_array_equal(other[name], gradient)
