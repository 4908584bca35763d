"""Each sharding on two gloo ranks against one model written with plain torch: embedding_bag, autograd, no TorchRec."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ranks import Arrays, run_ranks
from tiny_dataset import FIELDS, write_tiny_dataset
from tiny_run import take_steps, tiny_settings

from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError
from training.distributed.optimizers import replicated_optimizer
from training.distributed.settings import EmbeddingOptimizerSettings, ShardingSettings
from training.distributed.sharding import assign
from training.distributed.world import join
from training.model.counter_random import uniform_rows
from training.model.entire_space import EntireSpaceModel
from training.model.losses import loss_sums
from training.model.settings import EmbeddingSettings
from training.run.evaluate import predict_run
from training.run.run_folder import write_config
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

NUM_STEPS = 3
SHARDINGS = {
    "table_wise": ShardingSettings(),
    "row_wise": ShardingSettings("row_wise"),
    "data_parallel": ShardingSettings("data_parallel"),
    "mixed": ShardingSettings(
        "table_wise", {"item_id": "row_wise", "user_id": "row_wise", "user_brands": "data_parallel"}
    ),
}


def tables_of(trainer: Trainer) -> Arrays:
    """<table>/<first row>/<part> of this rank, copied."""
    return {
        f"tables/{shard.table}/{shard.first_row}/{part}": rows.numpy().copy()
        for shard in trainer.model.shards
        for part, rows in {"weight": shard.weight, **shard.optimizer}.items()
    }


def whole(ranks: list[Arrays]) -> Arrays:
    """Tables put together from the rows of all ranks; what several ranks hold must be the same."""
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for rank in ranks:
        for key, rows in rank.items():
            if key.startswith("tables/"):
                _, table, first_row, part = key.split("/")
                known = pieces.setdefault(f"{table}/{part}", {})
                np.testing.assert_array_equal(known.setdefault(int(first_row), rows), rows)
    return {name: np.concatenate([found[row] for row in sorted(found)]) for name, found in pieces.items()}


def trained(sgd: TrainSettings, settings: TrainSettings) -> Arrays:
    """A gradient (SGD at rate 1 moves a table by it), then losses, weights and predictions of a short run."""
    with join(settings.world) as world:
        trainer = Trainer(sgd, world)
        before = tables_of(trainer)
        take_steps(trainer, 1)
        after = tables_of(trainer)
        found = {f"gradient/{key}": before[key] - rows for key, rows in after.items()}
        trainer = Trainer(settings, world)
        found["losses"] = np.array(take_steps(trainer, NUM_STEPS))
        found |= tables_of(trainer)
        found |= {f"towers/{name}": value.detach().numpy() for name, value in trainer.model.towers.named_parameters()}
        position = replace(trainer.position, step=NUM_STEPS)
        trainer._writer.save(position, NUM_STEPS, None)
        trainer._writer.finish()
        predict_run(trainer.run, settings, "test", None, world)
    return found


class Plain:
    """The unsharded reference: tables as leaves, row-wise Adagrad written out, torch's Adam for the towers."""

    def __init__(self, settings: TrainSettings) -> None:
        with join(settings.world) as world:
            self.trainer = Trainer(settings, world)
            self.batches = [
                rank_batch.batch for rank_batch, _ in zip(self.trainer.batches(), range(NUM_STEPS), strict=False)
            ]
        manifest = self.trainer.manifest
        self.names = {scope: [entry.name for entry in manifest.fields_of(scope)] for scope in ("context", "impression")}
        model = EntireSpaceModel(manifest, self.trainer.graph, settings.embedding, settings.model, settings.seed)
        self.towers = model.towers
        self.tables = {
            name: torch.from_numpy(uniform_rows(settings.seed, name, 0, row[4], settings.embedding.dim, 0.05))
            for name, row in FIELDS.items()
        }
        for table in self.tables.values():
            table.requires_grad_()
        self.adam = torch.optim.Adam(self.towers.parameters(), lr=settings.optimizer.towers.lr)
        self.momentum = {name: torch.zeros(len(table)) for name, table in self.tables.items()}

    def gradients(self, step: int) -> float:
        """The loss at `step`; its gradients are left in the tables and the towers."""
        batch = self.batches[step]
        scopes = {}
        for scope, names in self.names.items():
            bags = getattr(batch, scope)
            lengths = bags.lengths.view(len(names), -1).long()
            parts = bags.values.split(lengths.sum(1).tolist()), bags.weights.split(lengths.sum(1).tolist())
            scopes[scope] = torch.cat(
                [
                    torch.nn.functional.embedding_bag(
                        ids, self.tables[name], length.cumsum(0) - length, mode="sum", per_sample_weights=weights
                    )
                    for name, ids, weights, length in zip(names, *parts, lengths, strict=True)
                ],
                1,
            )
        logit_of = self.towers(scopes["context"], scopes["impression"], batch.context_of_impression, None)
        loss = loss_sums(self.trainer.graph, logit_of, batch.labels).sum() / batch.num_impressions
        for table in self.tables.values():
            table.grad = None
        self.adam.zero_grad()
        loss.backward()
        return loss.item()

    def learn(self, lr: float, eps: float) -> None:
        self.adam.step()
        with torch.no_grad():
            for name, table in self.tables.items():
                assert table.grad is not None
                self.momentum[name] += table.grad.square().mean(1)
                table -= lr * table.grad / (self.momentum[name].sqrt() + eps)[:, None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharding") / "data"
    write_tiny_dataset(path, num_contexts=60)
    return path


def settings_of(data: Path, out: Path, sharding: str) -> TrainSettings:
    settings = tiny_settings(data, out, batch_size=48)
    settings.sharding = SHARDINGS[sharding]
    return settings


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_ranks_compute_what_one_unsharded_model_does(data: Path, tmp_path: Path, sharding: str) -> None:
    settings, sgd = (settings_of(data, tmp_path / name, sharding) for name in ("run", "sgd"))
    sgd.optimizer.embeddings = EmbeddingOptimizerSettings("sgd", lr=1.0)
    (tmp_path / "run").mkdir()
    write_config(tmp_path / "run", settings)
    ranks = run_ranks(trained, 2, tmp_path / "ranks", sgd, settings)

    plain = Plain(tiny_settings(data, tmp_path / "plain", batch_size=48))
    gradients = whole([{k[9:]: v for k, v in rank.items() if k.startswith("gradient/")} for rank in ranks])
    for step in range(NUM_STEPS):
        assert ranks[0]["losses"][step] == pytest.approx(plain.gradients(step), abs=1e-6)
        if step == 0:
            for name, table in plain.tables.items():
                assert table.grad is not None
                assert table.grad.abs().max() > 1e-4
                assert np.abs(gradients[f"{name}/weight"][:, :18] - table.grad.numpy()).max() < 1e-6, name
        plain.learn(settings.optimizer.embeddings.lr, settings.optimizer.embeddings.eps)
    found = whole(ranks)
    for name, table in plain.tables.items():
        np.testing.assert_allclose(found[f"{name}/weight"][:, :18], table.detach().numpy(), rtol=0, atol=1e-6)
        # FBGEMM's mean is over 20 columns, and the plain one over 18
        momentum = plain.momentum[name].numpy() * 18 / 20
        np.testing.assert_allclose(found[f"{name}/momentum1"], momentum, rtol=1e-4, atol=1e-9)
    for name, value in plain.towers.named_parameters():
        for rank in ranks:
            np.testing.assert_allclose(rank[f"towers/{name}"], value.detach().numpy(), rtol=0, atol=1e-5, err_msg=name)

    one = settings_of(data, tmp_path / "run", "table_wise")
    by_two = predictions(tmp_path / "run")
    with join(one.world) as world:
        predict_run(tmp_path / "run", one, "test", None, world)
        trainer = Trainer(settings_of(data, tmp_path / "run", sharding), world)
        restored = whole([tables_of(trainer)])
        assert trainer.position.step == NUM_STEPS
    assert restored.keys() == found.keys()
    for name, rows in found.items():
        np.testing.assert_array_equal(restored[name], rows, err_msg=name)
    by_one = predictions(tmp_path / "run")
    np.testing.assert_array_equal(by_one["impression_id"], by_two["impression_id"])
    for name in ("p_ctr", "p_cvr", "p_ctcvr"):
        np.testing.assert_allclose(by_one[name], by_two[name], rtol=0, atol=1e-6 if sharding == "row_wise" else 0)


def predictions(run: Path) -> Arrays:
    table = pq.read_table(run / "predictions" / "test").sort_by("impression_id")
    return {name: table.column(name).to_numpy() for name in ("impression_id", "p_ctr", "p_cvr", "p_ctcvr")}


def short_of_rows(settings: TrainSettings) -> Arrays:
    """Four ranks, a batch that leaves some of them without an impression, and a table of fewer rows than blocks."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        return {"losses": np.array(take_steps(trainer, 2))} | tables_of(trainer)


def test_ranks_without_impressions_or_rows_take_part(tmp_path: Path) -> None:
    """9 contexts, 5 impressions a step over 4 ranks and 8 lanes: some ranks have none."""
    write_tiny_dataset(tmp_path / "data", num_contexts=9)
    expected = {}
    for name, kind in (("one", "table_wise"), ("four", "row_wise")):
        settings = tiny_settings(tmp_path / "data", tmp_path / name, batch_size=8)
        settings.plan.lanes = 4
        settings.sharding = ShardingSettings(kind)
        expected[name] = run_ranks(short_of_rows, 1 if name == "one" else 4, tmp_path / f"{name}-ranks", settings)
    np.testing.assert_allclose(expected["four"][0]["losses"], expected["one"][0]["losses"], rtol=0, atol=1e-6)
    one, four = whole(expected["one"]), whole(expected["four"])
    for name, rows in one.items():
        np.testing.assert_allclose(four[name], rows, rtol=0, atol=2e-6, err_msg=name)


def table(name: str, rows: int) -> ManifestField:
    return ManifestField(name, name, "impression", "one", False, rows, "", "")


def test_tables_are_spread_so_that_memory_and_lookups_balance() -> None:
    fields = [table(name, rows) for name, rows in (("big", 1000), ("large", 900), ("small", 40), ("tiny", 30))]
    owners = assign(fields, EmbeddingSettings(), 2)
    assert owners["big"] != owners["large"]
    assert sorted(owners[name] for name in ("small", "tiny")) == [0, 1]
    assert set(assign(fields, EmbeddingSettings(), 1).values()) == {0}


def test_large_tables_are_cut_by_rows_where_nothing_else_is_said() -> None:
    settings = ShardingSettings(tables={"named": "table_wise"}, row_wise_above_mb=1.0)
    assert settings.kind_of(table("large", 12_501), 20) == "row_wise"
    assert settings.kind_of(table("small", 12_500), 20) == "table_wise"
    assert settings.kind_of(table("named", 12_501), 20) == "table_wise"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"default": "column_wise"}, r"sharding\.default=column_wise is not one of table_wise, row_wise, data_par"),
        ({"tables": {"a": "rows"}}, r"sharding\.tables\.a=rows is not one of"),
        ({"row_wise_above_mb": 0.0}, r"sharding\.row_wise_above_mb=0\.0 is not above 0"),
    ],
)
def test_impossible_shardings_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ShardingSettings(**settings)


def test_a_sharding_for_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"sharding\.tables\.b: the dataset has no field b; it has a\."):
        ShardingSettings(tables={"b": "row_wise"}).check_fields([table("a", 9)])


def test_adam_for_replicated_tables_is_refused() -> None:
    with pytest.raises(InputError, match=r"name=adam cannot train data_parallel tables \(a\); give them sharding"):
        replicated_optimizer({"a": torch.zeros(2, 4)}, EmbeddingSettings(), EmbeddingOptimizerSettings("adam"))
