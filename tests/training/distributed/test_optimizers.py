from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps, tiny_settings, weights

from pipeline.errors import InputError
from training.distributed.settings import (
    EmbeddingOptimizerSettings,
    ScheduleSettings,
    ShardingSettings,
    TowerOptimizerSettings,
)
from training.distributed.world import join
from training.model.losses import loss_sums
from training.model.settings import EmbeddingSettings
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def reference_factor(step: int, warmup: int, decay: str, steps: int, final: float) -> float:
    """The definition, by interpolation over the schedule's corners."""
    if step < warmup:
        return float(np.interp(step + 1, [0, warmup], [0, 1]))
    if decay == "cosine":
        return final + (1 - final) * float(np.cos(np.pi / 2 * min(step - warmup, steps) / steps) ** 2)
    return float(np.interp(step, [warmup, warmup + steps], [1, final])) if decay == "linear" else 1.0


@pytest.mark.parametrize(
    ("warmup", "decay", "steps", "final"),
    [(0, "none", 0, 0.0), (4, "none", 0, 0.0), (0, "linear", 5, 0.0), (3, "linear", 5, 0.2), (2, "cosine", 6, 0.1)],
)
def test_the_rate_rises_and_falls_as_defined(warmup: int, decay: str, steps: int, final: float) -> None:
    schedule = ScheduleSettings(warmup, decay, steps, final)
    for step in range(15):
        assert schedule.factor(step) == pytest.approx(reference_factor(step, warmup, decay, steps, final), abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"warmup_steps": -1}, r"schedule\.warmup_steps=-1 is below 0"),
        ({"decay": "step"}, r"schedule\.decay=step is not one of none, linear, cosine"),
        ({"decay": "linear"}, r"schedule\.decay=linear does not go with decay_steps=0"),
        ({"decay_steps": 9}, r"schedule\.decay=none does not go with decay_steps=9"),
        ({"decay": "linear", "decay_steps": 9, "final": 2.0}, r"schedule\.final=2\.0 is outside \[0, 1\]"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ScheduleSettings(**settings)


def test_a_norm_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"clip_norm=-1\.0 is below 0"):
        TowerOptimizerSettings(clip_norm=-1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("optimizers") / "data"
    write_tiny_dataset(path, num_contexts=60)
    return path


def moves(settings: TrainSettings, num_steps: int) -> dict[str, np.ndarray]:
    """How far each table went in one step that is `num_steps` into the run, from the start."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        before = weights(trainer)
        rank_batch = next(trainer.batches())
        forward_pass = trainer.model.forward(rank_batch.batch, rank_batch.ids, num_steps)
        loss = loss_sums(trainer.graph, forward_pass.logits, rank_batch.batch.labels).sum()
        trainer.model.differentiate(loss)
        trainer.model.learn(forward_pass)
        after = weights(trainer)
        return {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("sharding", ["table_wise", "data_parallel"])
@pytest.mark.parametrize("name", ["rowwise_adagrad", "sgd"])
def test_tables_and_towers_move_at_the_rate_of_the_step(data: Path, tmp_path: Path, sharding: str, name: str) -> None:
    """A first step of each optimizer is proportional to its rate, whatever a field's dimension."""
    settings = tiny_settings(data, tmp_path / "a")
    settings.embedding = EmbeddingSettings(dims={"item_id": 20}, pooling="mean")
    settings.sharding = ShardingSettings(sharding)
    settings.optimizer.embeddings = EmbeddingOptimizerSettings(name, lr=0.1)
    full = moves(settings, 0)
    settings.optimizer.embeddings.schedule = ScheduleSettings(decay="linear", decay_steps=8, final=0.0)
    settings.optimizer.towers.schedule = ScheduleSettings(warmup_steps=10)
    part = moves(replace(settings, out=str(tmp_path / "b")), 6)
    for key, move in full.items():
        if key.endswith("momentum1"):
            continue
        factor = 0.25 if key.startswith("tables/") else 0.7
        assert np.abs(move).max() > 1e-4, key
        np.testing.assert_allclose(part[key], factor * move, rtol=1e-4, atol=1e-7, err_msg=key)


def test_the_towers_gradients_are_clipped_together_and_the_tables_are_not(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "a")
    found = {}
    for clip_norm in (0.0, 1e-3):
        settings.optimizer.towers.clip_norm = clip_norm
        settings.out = str(tmp_path / str(clip_norm))
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            take_steps(trainer, 1)
            gradients = [p.grad.numpy() for p in trainer.model.towers.parameters() if p.grad is not None]
            found[clip_norm] = (gradients, weights(trainer)["tables/item_id"])
    (free, table), (clipped, same_table) = found.values()
    norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in free))
    assert norm > 1e-2
    for before, after in zip(free, clipped, strict=True):
        np.testing.assert_allclose(after, before * 1e-3 / norm, rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(table, same_table)


def test_bf16_learns_what_fp32_does(data: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        settings = tiny_settings(data, tmp_path / precision, batch_size=24)
        settings.precision = precision
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            losses[precision] = np.array(take_steps(trainer, 6))
            assert all(parameter.dtype == torch.float32 for parameter in trainer.model.towers.parameters())
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=5e-3)
    assert (losses["bf16"] != losses["fp32"]).any()


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"precision=fp16 is not one of fp32, tf32, bf16"):
        TrainSettings(precision="fp16")
