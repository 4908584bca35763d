"""ESMM-NS: no network learns or reads a row of the other's tables, on any number of ranks and through init_from."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranks import Arrays, run_ranks
from sklearn.metrics import roc_auc_score
from tiny_dataset import FIELDS, write_tiny_dataset
from tiny_run import merged, take_steps, weights

from jobs.entry import compose
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from training.distributed.world import join
from training.model.own_tables import field_of, table_name, tables_of
from training.planning.memory_estimate import memory_needs, table_plans, tables_of_model
from training.run.continuation import check_same_schema
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own_tables") / "data"
    write_tiny_dataset(path, num_contexts=80, numeric=True)
    return path


def settings_of(data: Path, out: Path, *overrides: str) -> TrainSettings:
    given = [f"data={data}", f"out={out}", "plan.batch_size=64", "world.device=cpu", "world.timeout_s=60"]
    return compose("train", TrainSettings, [*given, "model.towers.hidden=[16,8]", "validation.split=null", *overrides])


def steps(settings: TrainSettings, num_steps: int) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        take_steps(trainer, num_steps)
        trainer.close()
        return weights(trainer)


def test_each_head_has_a_table_of_each_field() -> None:
    assert [table_name("item_id", copy) for copy in range(3)] == ["item_id", "item_id@1", "item_id@2"]
    assert [field_of(table) for table in ("item_id", "item_id@2")] == ["item_id", "item_id"]


def test_without_the_loss_of_ctcvr_the_ctr_network_is_that_of_one_trained_alone_and_the_other_never_moves(
    data: Path, tmp_path: Path
) -> None:
    """Bit by bit: the tower and the tables of head 0 are drawn as those of model=ctr, and see its gradients."""
    alone = steps(settings_of(data, tmp_path / "ctr", "model=ctr"), 4)
    idle = ["model=esmm_ns", "model.graph.loss_weights.conversion=0.0"]
    begun, together = (steps(settings_of(data, tmp_path / f"ns{count}", *idle), count) for count in (0, 4))
    assert {name.partition("@")[0] for name in together if name.startswith("tables/")} <= set(alone)
    for name, value in alone.items():
        np.testing.assert_array_equal(together[name], value, err_msg=name)
    others = [name for name in together if "@1" in name or name.startswith("towers/1.")]
    assert len(others) > len(FIELDS)
    for name in others:
        np.testing.assert_array_equal(together[name], begun[name], err_msg=name)
    shared = steps(settings_of(data, tmp_path / "shared", "model=esmm"), 4)
    assert not np.array_equal(shared["tables/item_id"], alone["tables/item_id"])


def test_the_networks_of_division_are_those_of_two_runs(data: Path, tmp_path: Path) -> None:
    """Bit by bit for the CTR network, whose weights are drawn alike; the other learns from its own loss alone."""
    alone = steps(settings_of(data, tmp_path / "ctr", "model=ctr"), 4)
    both = steps(settings_of(data, tmp_path / "both", "model=division"), 4)
    for name, value in alone.items():
        np.testing.assert_array_equal(both[name], value, err_msg=name)
    idle = steps(settings_of(data, tmp_path / "idle", "model=division", "model.graph.loss_weights.click=0.0"), 4)
    for name in (name for name in both if "@1" in name or name.startswith("towers/1.")):
        np.testing.assert_array_equal(both[name], idle[name], err_msg=name)


def test_division_counts_how_often_its_quotient_exceeds_one(data: Path, tmp_path: Path) -> None:
    settings = settings_of(data, tmp_path / "run", "model=division", "optimizer.towers.lr=0.3")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
        figures = evaluate_split(tmp_path / "run", settings, "test", None, world)
    assert figures is not None
    rows = pq.read_table(tmp_path / "run" / "predictions" / "test").to_pylist()
    for row in rows:
        assert row["p_cvr"] == pytest.approx(row["p_ctcvr"] / row["p_ctr"], rel=1e-5)
    above = sum(row["p_cvr"] > 1 for row in rows)
    assert figures["cvr_num_above_one"] == above > 0
    clicked = [row for row in rows if row["click"]]
    auc = roc_auc_score([row["conversion"] for row in clicked], [row["p_cvr"] for row in clicked])
    assert figures["cvr_auc"] == pytest.approx(auc)


def test_two_networks_start_from_other_rows_and_both_learn(data: Path, tmp_path: Path) -> None:
    before, after = (steps(settings_of(data, tmp_path / str(count), "model=esmm_ns"), count) for count in (0, 4))
    assert not np.array_equal(before["tables/item_id"], before["tables/item_id@1"])
    for name in FIELDS:
        for copy in range(2):
            table = f"tables/{table_name(name, copy)}"
            assert not np.array_equal(before[table], after[table]), table


def test_two_ranks_learn_what_one_does_wherever_the_tables_are(data: Path, tmp_path: Path) -> None:
    placed = ["sharding.tables.item_id=row_wise", "sharding.tables.item_intention=data_parallel"]
    one = steps(settings_of(data, tmp_path / "one", "model=esmm_ns", *placed), 3)
    ranks = run_ranks(steps, 2, tmp_path, settings_of(data, tmp_path / "two", "model=esmm_ns", *placed), 3)
    assert len(ranks[0]["tables/item_id@1"]) < len(one["tables/item_id@1"])
    cut = [name for name in one if name.startswith("tables/item_id")]
    blocks = {name: np.concatenate([rank.pop(name) for rank in ranks]) for name in cut}
    for name, value in (merged(ranks) | blocks).items():
        np.testing.assert_allclose(value, one[name], atol=1e-5, err_msg=name)


def test_a_run_begun_from_another_keeps_the_tables_of_every_head(data: Path, tmp_path: Path) -> None:
    settings = settings_of(data, tmp_path / "first", "model=esmm_ns")
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.fit()
        expected = weights(trainer)
    found = steps(settings_of(data, tmp_path / "second", "model=esmm_ns", f"init_from={tmp_path / 'first'}"), 0)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_shared_tables_cannot_go_on_as_own_ones_nor_below_a_shared_body(data: Path, tmp_path: Path) -> None:
    manifest, shared = load_manifest(data), settings_of(data, tmp_path, "model=esmm")
    with pytest.raises(InputError, match=r"model.own_tables was False and is True"):
        check_same_schema("init_from=RUN", shared, manifest, settings_of(data, tmp_path, "model=esmm_ns"), manifest)
    with pytest.raises(InputError, match=r"model.own_tables=true and model.body.kind=mmoe"):
        settings_of(data, tmp_path, "model=mmoe", "model.own_tables=true")


def test_the_planner_counts_every_table(data: Path, tmp_path: Path) -> None:
    manifest, needs = load_manifest(data), []
    for model in ("esmm", "esmm_ns"):
        settings = settings_of(data, tmp_path, f"model={model}")
        plans = table_plans(tables_of_model(manifest, settings), settings, 2)
        needs.append((len(plans), memory_needs(plans, manifest, settings, 2, True)))
    (one, shared), (two, own) = needs
    assert (one, two) == (len(FIELDS), 2 * len(FIELDS))
    assert sum(own.tables) == 2 * sum(shared.tables)
    assert own.step > shared.step
    assert own.towers == shared.towers
    assert [entry.name for entry in tables_of(manifest.fields[:1], 3)] == ["user_id", "user_id@1", "user_id@2"]
