"""The average against its definition in float64, and what it may not do: change training, or depend on stops and ranks."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps, tiny_settings, weights
from torch import nn

from training.checkpoint import save as checkpoint_writer
from training.checkpoint.files import find_newest
from training.checkpoint.meta import Checkpoint
from training.checkpoint.restore import restore, restore_to_predict
from training.checkpoint.tensors import SavedTensors
from training.distributed import weight_average
from training.distributed.settings import AverageSettings, AverageState
from training.distributed.sharded_model import Shard, ShardedModel
from training.distributed.weight_average import WeightAverage
from training.distributed.world import join
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def a_model(num_rows: int, first_row: int = 0) -> ShardedModel:
    tower = nn.ModuleList([nn.Linear(3, 1)])
    shard = Shard("t", first_row, torch.zeros(num_rows, 4), {"momentum1": torch.zeros(num_rows)})
    return cast(ShardedModel, SimpleNamespace(towers=tower, shards=[shard]))


def draw(model: ShardedModel, generator: torch.Generator) -> None:
    """Stand in for a step: other weights, as large as those of a long run."""
    for parameter in model.towers.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 3)
    for shard in model.shards:
        shard.weight.copy_(torch.randn(shard.weight.shape, generator=generator))


def expected_average(history: list[np.ndarray], counted: list[int], since: int, power: float) -> np.ndarray:
    """Sum share · weights over the steps `counted`: the weights after one stand for all steps since the one before."""
    numbers = np.array([0, *(step - since for step in counted)], np.float64)
    shares = np.diff(numbers ** (power + 1)) / numbers[-1] ** (power + 1)
    assert shares.sum() == pytest.approx(1)
    kept = [history[step - since - 1].astype(np.float64) for step in counted]
    return np.tensordot(shares, np.stack(kept), axes=1)


@pytest.mark.parametrize(("power", "snapshots", "since"), [(3.0, 5, 0), (0.0, 5, 7), (1.5, 50, 0), (7.0, 1, 3)])
def test_the_average_is_its_definition(
    power: float, snapshots: int, since: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_average, "FREQUENT_ROWS", 6)
    model, generator = a_model(6, first_row=2), torch.Generator().manual_seed(1)  # rows 2 to 5, then 6 and 7
    average = WeightAverage(model, AverageSettings("polynomial", power, snapshots), steps_per_epoch=50)
    towers, rows = [], []
    for step in range(since + 1, since + 24):
        draw(model, generator)
        average.update(step)
        towers.append(model.towers.state_dict()["0.weight"].numpy().copy())
        rows.append(model.shards[0].weight.numpy().copy())
    every = 50 // snapshots
    all_steps = list(range(since + 1, since + 24))
    in_snapshots = [step for step in all_steps if step == since + 1 or (step - since) % every == 0]
    found, table = average.towers["0.weight"], torch.cat([shard.weight for shard in average.shards])
    assert [shard.first_row for shard in average.shards] == [2, 6]
    np.testing.assert_allclose(found, expected_average(towers, all_steps, since, power), rtol=1e-5, atol=1e-6)
    for number, steps in ((slice(0, 4), all_steps), (slice(4, 6), in_snapshots)):
        wanted = expected_average([one[number] for one in rows], steps, since, power)
        np.testing.assert_allclose(table[number], wanted, rtol=1e-5, atol=1e-6)
    assert average.state == AverageState(power, since, since + 23, in_snapshots[-1])


def test_a_row_that_no_step_touches_keeps_its_bits_and_one_touched_once_is_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weight_average, "FREQUENT_ROWS", 1)
    model = a_model(3)
    rows = model.shards[0].weight
    rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(2)))
    kept = rows.clone()
    average = WeightAverage(model, AverageSettings("polynomial", 1.0, 10), steps_per_epoch=40)
    for step in range(1, 41):
        if step == 21:
            rows[2] += 1.0
        average.update(step)
    found = torch.cat([shard.weight for shard in average.shards])
    assert torch.equal(found[:2], kept[:2])
    # Snapshots after steps 1, 4, …, 40: those from 24 on have the new value, which stands for the steps from 21 on.
    torch.testing.assert_close(found[2], kept[2] + (1.0 - (20 / 40) ** 2))


def test_in_place_exchanges_the_bits_and_brings_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_average, "_ROWS_IN_EXCHANGE", 2)
    model, generator = a_model(5), torch.Generator().manual_seed(1)
    average = WeightAverage(model, AverageSettings("polynomial"), steps_per_epoch=9)
    with average.in_place():  # before the first step: nothing
        assert not model.shards[0].weight.any()
    for step in range(1, 4):
        draw(model, generator)
        average.update(step)

    def state(one: ShardedModel | WeightAverage) -> list[torch.Tensor]:
        towers = one.towers.state_dict() if isinstance(one.towers, nn.Module) else one.towers
        return [tensor.detach().clone() for tensor in (*towers.values(), one.shards[0].weight)]

    live, averaged = state(model), state(average)
    assert not torch.equal(live[-1], averaged[-1])

    def interrupted() -> None:
        with average.in_place():
            assert all(map(torch.equal, state(model), averaged))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(map(torch.equal, state(model), live))
    assert all(map(torch.equal, state(average), averaged))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("average") / "data"
    write_tiny_dataset(path, num_contexts=150)
    return path


def with_average(data: Path, out: Path, epochs: int = 1, kind: str = "polynomial") -> TrainSettings:
    settings = tiny_settings(data, out, epochs=epochs)
    settings.average = AverageSettings(kind, 3.0, snapshots=4)
    settings.checkpoint.every_steps = 3
    settings.checkpoint.keep = 99
    return settings


def fit(settings: TrainSettings) -> Arrays:
    with join(settings.world) as world:
        Trainer(settings, world).fit()
        return {}


def newest(run: Path) -> Checkpoint:
    found = find_newest(run, print)
    assert found is not None
    return found


def all_of(checkpoint: Checkpoint, average: bool) -> Arrays:
    """Every table's weight and every tower of a checkpoint, whatever number of ranks wrote it."""
    saved = SavedTensors(checkpoint, average)
    tables = sorted({table for table, part in saved._blocks if part == "weight"})
    found = {
        f"tables/{table}": torch.cat(
            [rows for _, rows in saved.blocks(table, "weight", 0, saved.num_rows(table, "weight"))]
        ).numpy()
        for table in tables
    }
    names = [name for name in saved.tower_names if not name.startswith("adam/")]
    return found | {f"towers/{name}": saved._towers.get_tensor(name).numpy() for name in names}


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that nothing stopped."""
    out = tmp_path_factory.mktemp("average-run") / "whole"
    fit(with_average(data, out, epochs=3))
    return out


def test_training_ends_with_the_same_bits_with_and_without_an_average(data: Path, tmp_path: Path, whole: Path) -> None:
    fit(with_average(data, tmp_path / "without", epochs=3, kind="none"))
    plain = newest(tmp_path / "without")
    assert plain.average is None
    assert not list(plain.path.glob("average-*"))
    for name in ("rank-00000.safetensors", "towers.safetensors"):
        assert (newest(whole).path / name).read_bytes() == (plain.path / name).read_bytes()


def test_a_resumed_run_has_the_average_of_an_undisturbed_one(data: Path, tmp_path: Path, whole: Path) -> None:
    """Though it was planned for one epoch, and its later checkpoints are gone; at the same number of ranks."""
    fit(with_average(data, tmp_path / "run"))
    for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[2:]:
        path.rename(path.with_name(f"{path.name}.bak"))
    fit(with_average(data, tmp_path / "run", epochs=3))
    for name in ("average-00000.safetensors", "average-towers.safetensors", "rank-00000.safetensors"):
        assert (newest(tmp_path / "run").path / name).read_bytes() == (newest(whole).path / name).read_bytes()
    assert newest(tmp_path / "run").average == newest(whole).average


def test_a_checkpoint_has_the_average_of_all_steps_up_to_it(data: Path, tmp_path: Path) -> None:
    """Of the weights that checkpoints after every step have; the tables are smaller than FREQUENT_ROWS."""
    settings = with_average(data, tmp_path / "run")
    settings.checkpoint.every_steps = 1
    fit(settings)
    last = newest(tmp_path / "run")
    paths = sorted(last.path.parent.glob("step-*"))
    live = [all_of(replace(last, path=path), average=False) for path in paths]
    for name, value in all_of(last, average=True).items():
        wanted = expected_average([one[name] for one in live], list(range(1, len(live) + 1)), 0, 3.0)
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6, err_msg=name)


def on_two_ranks(settings: TrainSettings) -> Arrays:
    settings.sharding.default = "row_wise"
    settings.sharding.tables = {"user_brands": "data_parallel", "item_id": "table_wise"}
    return fit(settings)


def predictions(settings: TrainSettings, run: Path, fill: Callable[[Checkpoint, ShardedModel], None]) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        fill(newest(run), trainer.model)
        batch = next(trainer.batches())
        found = trainer.model.predict(batch.batch, batch.ids)
        return {str(edge): logit.numpy() for edge, logit in found.items()} | weights(trainer)


def test_two_ranks_average_what_one_does_and_one_restores_what_two_saved(data: Path, tmp_path: Path) -> None:
    fit(with_average(data, tmp_path / "one"))
    run_ranks(on_two_ranks, 2, tmp_path / "ranks", with_average(data, tmp_path / "two"))
    one, two = (all_of(newest(tmp_path / name), average=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    found = predictions(with_average(data, tmp_path / "back"), tmp_path / "two", restore_to_predict)
    assert_same({name: value for name, value in found.items() if name in two}, two)


def test_what_predicts_is_the_average_and_the_last_weights_where_there_is_none(
    data: Path, tmp_path: Path, whole: Path
) -> None:
    fresh = with_average(data, tmp_path / "fresh")
    averaged, last = (predictions(fresh, whole, fill) for fill in (restore_to_predict, restore))
    expected = all_of(newest(whole), average=True)
    assert_same({name: averaged[name] for name in expected}, expected)
    assert any((averaged[name] != last[name]).any() for name in expected)
    fit(with_average(data, tmp_path / "without", kind="none"))
    one, other = (predictions(fresh, tmp_path / "without", fill) for fill in (restore_to_predict, restore))
    for name in expected:
        np.testing.assert_array_equal(one[name], other[name])


def test_an_older_checkpoint_and_another_power_begin_a_new_average(data: Path, tmp_path: Path) -> None:
    fit(with_average(data, tmp_path / "run", kind="none"))
    older = with_average(data, tmp_path / "run", epochs=2)
    fit(older)
    last = newest(tmp_path / "run")
    steps = int(last.path.name.removeprefix("step-"))
    assert last.average == AverageState(3.0, steps // 2, steps, last.average.snapshot if last.average else 0)
    older.epochs, older.average = 3, AverageSettings("polynomial", 2.0, 4)
    fit(older)
    state = newest(tmp_path / "run").average
    assert state is not None
    assert (state.power, state.since) == (2.0, steps)


def test_validation_judges_the_average_and_training_goes_on_from_the_last_weights(data: Path, tmp_path: Path) -> None:
    settings = with_average(data, tmp_path / "run")
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        assert trainer.validation is not None
        take_steps(trainer, 5)
        kept = weights(trainer)
        live = trainer.validation.figures(trainer.model, world)
        with trainer.predicting():
            averaged = trainer.validation.figures(trainer.model, world)
        assert live != averaged
        assert_same(weights(trainer), kept)
        trainer.position = replace(trainer.position, step=5)
        trainer.settings.validation.every_steps = 5
        assert trainer._validate()
        assert trainer.validation_state is not None
        assert averaged is not None
        assert trainer.validation_state.best == averaged[trainer.validation.metric]


def test_a_snapshot_waits_for_the_thread_that_writes_the_one_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average of the tables is written from its own memory, so a slow disk may not see the next snapshot."""
    write, seen = checkpoint_writer.write_safetensors, []

    def slow_write(path: Path, tensors: dict[str, torch.Tensor]) -> list[int]:
        if path.name.startswith("average-0"):
            before = {name: tensor.clone() for name, tensor in tensors.items()}
            time.sleep(0.2)
            seen.append(all(torch.equal(tensor, before[name]) for name, tensor in tensors.items()))
        return write(path, tensors)

    monkeypatch.setattr(checkpoint_writer, "write_safetensors", slow_write)
    monkeypatch.setattr(weight_average, "FREQUENT_ROWS", 5)
    settings = with_average(data, tmp_path / "run")
    settings.checkpoint.every_steps = 1
    fit(settings)
    assert len(seen) > 4
    assert all(seen)
