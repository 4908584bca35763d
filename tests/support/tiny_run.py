"""Settings of a small run, and what tests look at in one."""

from pathlib import Path

import numpy as np
import torch

from training.checkpoint.meta import Position, ValidationState
from training.checkpoint.save import CheckpointWriter
from training.checkpoint.settings import CheckpointSettings
from training.distributed.settings import (
    EmbeddingOptimizerSettings,
    OptimizerSettings,
    TowerOptimizerSettings,
    WorldSettings,
)
from training.distributed.sharded_model import ShardedModel
from training.distributed.world import World
from training.feed.plan import PlanSettings
from training.model.settings import EmbeddingSettings, GraphSettings, ModelSettings, TowerSettings
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

GRAPH = GraphSettings(
    ["click | impression", "conversion | click"],
    ["click", "conversion"],
    {"p_ctr": "click", "p_cvr": "conversion | click", "p_ctcvr": "conversion"},
)


def tiny_settings(data: Path, out: Path, batch_size: int = 64, dropout: float = 0.0, epochs: int = 1) -> TrainSettings:
    """Return settings of ESMM with two small hidden layers."""
    return TrainSettings(
        data=str(data),
        out=str(out),
        epochs=epochs,
        plan=PlanSettings(batch_size=batch_size),
        model=ModelSettings(name="esmm", towers=TowerSettings([16, 8], dropout), graph=GRAPH),
        embedding=EmbeddingSettings(pooling="mean"),
        optimizer=OptimizerSettings(EmbeddingOptimizerSettings(lr=0.1), TowerOptimizerSettings(lr=1e-3)),
        world=WorldSettings(device="cpu", timeout_s=60),
    )


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    """Copy this rank's tables and their optimizers' state, and the towers."""
    found = {f"towers/{name}": value.detach().numpy().copy() for name, value in trainer.model.towers.named_parameters()}
    for shard in trainer.model.shards:
        found[f"tables/{shard.table}"] = shard.weight.numpy().copy()
        for name, state in shard.optimizer.items():
            found[f"tables/{shard.table}/{name}"] = state.numpy().copy()
    return found


def take_steps(trainer: Trainer, num_steps: int) -> list[float]:
    """Take the first steps of the epoch; return each loss over the global batch."""
    losses = []
    for rank_batch in trainer.batches():
        if rank_batch.step == num_steps:
            break
        losses.append(sum(trainer.step(rank_batch).losses))
    return losses


def merged(ranks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Merge the tables of all ranks with the towers of rank 0, which every rank must have."""
    whole: dict[str, np.ndarray] = {}
    for rank in ranks:
        for name, value in rank.items():
            if name in whole:
                torch.testing.assert_close(value, whole[name], rtol=0, atol=0)
            whole[name] = value
    return whole


def save(
    run: Path,
    model: ShardedModel,
    position: Position,
    world: World,
    keep: int = 2,
    validation: ValidationState | None = None,
) -> None:
    """Save a whole checkpoint after `position.step` steps."""
    with CheckpointWriter(run, model, "0" * 16, world, CheckpointSettings(keep=keep)) as writer:
        writer.save(position, position.step, validation)
