from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import merged, take_steps, tiny_settings, weights

from pipeline.errors import InputError
from training.distributed.settings import EmbeddingOptimizerSettings, OptimizerSettings
from training.distributed.world import join
from training.feed.batch import Bags, Batch
from training.model.counter_random import uniform_rows
from training.model.losses import loss_sums, part_of_global_mean
from training.model.settings import EmbeddingSettings
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def first_gradients(settings: TrainSettings, num_steps: int) -> Arrays:
    """With SGD at rate 1 a table's change is its gradient, and the towers' are there to be read."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        before = weights(trainer)
        take_steps(trainer, num_steps)
        found = {name: before[name] - value for name, value in weights(trainer).items() if name.startswith("tables/")}
        for name, parameter in trainer.model.towers.named_parameters():
            assert parameter.grad is not None
            found[f"towers/{name}"] = parameter.grad.numpy().copy()
        return found


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_two_ranks_give_the_gradient_of_one_rank_on_the_whole_batch(tmp_path: Path, dropout: float) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=60)
    one, two = (
        tiny_settings(tmp_path / "data", tmp_path / name, batch_size=200, dropout=dropout) for name in ("one", "two")
    )
    for settings in (one, two):
        settings.optimizer.embeddings = EmbeddingOptimizerSettings("sgd", lr=1.0)
    single = first_gradients(one, 1)
    double = merged(run_ranks(first_gradients, 2, tmp_path / "ranks", two, 1))
    assert single.keys() == double.keys()
    for name, gradient in single.items():
        assert np.abs(gradient).max() > 1e-5, name
        np.testing.assert_allclose(double[name], gradient, rtol=0, atol=1e-6, err_msg=name)


def rowwise_adagrad_batch(settings: TrainSettings, num_steps: int, batch: Batch) -> tuple[Arrays, list[np.ndarray]]:
    """item_id's table after each step on `batch`, and the gradient of its pooled rows at each."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        tables, gradients = [], []
        for _ in range(num_steps):
            tables.append(weights(trainer)["tables/item_id"])
            forward_pass = trainer.model.forward(batch, trainer.model.exchange.send(batch), 0)
            sums = loss_sums(trainer.graph, forward_pass.logits, batch.labels)
            trainer.model.differentiate(part_of_global_mean(sums, trainer.plan.step_size(0)))
            assert forward_pass.pooled.impression_BD.grad is not None
            gradients.append(forward_pass.pooled.impression_BD.grad.numpy().copy())
            trainer.model.learn(forward_pass)
        return {"tables": np.stack([*tables, weights(trainer)["tables/item_id"]])}, gradients


@pytest.mark.parametrize("dim", [18, 20])
def test_rowwise_adagrad_on_20_columns_equals_one_on_the_18_that_are_used(tmp_path: Path, dim: int) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=20)
    settings = tiny_settings(tmp_path / "data", tmp_path / "run")
    settings.embedding = EmbeddingSettings(dim=dim)
    lr, eps = settings.optimizer.embeddings.lr, settings.optimizer.embeddings.eps
    items = torch.tensor([3, 4, 3, 0, 7])
    nothing = torch.zeros(5, dtype=torch.int32)
    batch = Batch(
        context=Bags(torch.tensor([1, 2]), torch.tensor([1, 1, 0, 0], dtype=torch.int32), torch.ones(2)),
        impression=Bags(items, torch.cat([torch.ones(5, dtype=torch.int32), nothing, nothing]), torch.ones(5)),
        context_numeric=torch.empty(2, 0),
        impression_numeric=torch.empty(5, 0),
        context_of_impression=torch.tensor([0, 0, 0, 1, 1]),
        labels={"click": torch.tensor([1.0, 0, 1, 0, 1]), "conversion": torch.tensor([1.0, 0, 0, 0, 0])},
        impression_id=torch.arange(5),
        group_id=torch.arange(2),
        context_id=["x", "y"],
    )
    found, gradients = rowwise_adagrad_batch(settings, 3, batch)
    table = np.zeros((50, dim))
    table[:] = uniform_rows(settings.seed, "item_id", 0, 50, dim, settings.embedding.init_bound)
    momentum = np.zeros(50)
    for step, gradient_BD in enumerate(gradients):
        gradient = np.zeros((50, dim))
        np.add.at(gradient, items.numpy(), gradient_BD[:, :dim].astype(np.float64))
        momentum += (gradient**2).mean(1)  # over the columns that are used
        table -= lr * gradient / (np.sqrt(momentum) + eps)[:, None]
        np.testing.assert_allclose(found["tables"][step + 1][:, :dim], table, rtol=2e-5, atol=2e-6)
    assert (found["tables"][:, :, dim:] == 0).all()


def test_an_optimizer_that_a_cpu_lacks_is_refused_with_the_list_of_what_it_has() -> None:
    settings = OptimizerSettings(EmbeddingOptimizerSettings("adam"))
    with pytest.raises(InputError, match=r"name=adam has no kernel on cpu; use one of rowwise_adagrad, adagrad, sgd\."):
        settings.check_device("cpu")
