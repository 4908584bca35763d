"""Numeric fields: tanh((v - µ)/σ) beside the embeddings (ESM² eq. 17), 0 where the value is missing."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damaged_files import error_of, first_table, with_table
from ranks import Arrays, run_ranks
from slow_reading import feed_of, plan_of
from tiny_dataset import NUMERIC_FIELDS, write_manifest, write_tiny_dataset
from tiny_run import merged, take_steps, tiny_settings, weights

from pipeline.dataset.kinds import CATEGORICAL, INDEX
from pipeline.dataset.manifest import Manifest, ManifestField, load_manifest
from pipeline.errors import InputError
from training.distributed.settings import ShardingSettings
from training.distributed.world import join
from training.feed.numeric import squash
from training.model.settings import EmbeddingSettings
from training.run.continuation import check_same_schema
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numeric") / "data"
    write_tiny_dataset(path, num_contexts=150, numeric=True)
    return path


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path, write_tiny_dataset(tmp_path, num_contexts=40, numeric=True, splits={"train": 1.0})


def field_of(manifest: Manifest, name: str) -> ManifestField:
    return next(entry for entry in manifest.fields if entry.name == name)


def replaced(manifest: Manifest, name: str, **changes: Any) -> Manifest:
    fields = [dataclasses.replace(entry, **changes) if entry.name == name else entry for entry in manifest.fields]
    return dataclasses.replace(manifest, fields=tuple(fields))


def raw_values(path: Path, manifest: Manifest, split: str = "train") -> dict[int, tuple[float | None, float | None]]:
    """impression_id → (user_spend, item_price) as they stand in the files."""
    return {
        impression: (row["user_spend"], price)
        for file in manifest.files_of(split)
        for row in pq.read_table(path / file.path).to_pylist()
        for impression, price in zip(row["impression_id"], row["item_price"], strict=True)
    }


def slowly(value: float | None, entry: ManifestField) -> float:
    """ESM² eq. 17 for one value."""
    assert entry.mean is not None
    assert entry.std is not None
    return 0.0 if value is None else math.tanh((value - entry.mean) / entry.std)


def test_a_batch_holds_the_squashed_value_of_each_context_and_impression(data: Path) -> None:
    manifest = load_manifest(data)
    spend, price = (field_of(manifest, name) for name in NUMERIC_FIELDS)
    raw, seen = raw_values(data, manifest), 0
    for batch in feed_of(data, manifest).batches(0):
        assert batch.context_numeric.shape == (batch.num_contexts, 1)
        assert batch.impression_numeric.shape == (batch.num_impressions, 1)
        assert batch.context_numeric.dtype == batch.impression_numeric.dtype == torch.float32
        for place, impression in enumerate(batch.impression_id.tolist()):
            context = int(batch.context_of_impression[place])
            assert batch.context_numeric[context].item() == pytest.approx(slowly(raw[impression][0], spend), abs=1e-7)
            assert batch.impression_numeric[place].item() == pytest.approx(slowly(raw[impression][1], price), abs=1e-7)
            seen += 1
    assert seen == len(raw)
    assert any(value is None for value, _ in raw.values())
    assert any(value is None for _, value in raw.values())


def test_clicks_alone_carry_their_own_values(data: Path) -> None:
    manifest = load_manifest(data)
    price, raw = field_of(manifest, "item_price"), raw_values(data, manifest)
    batches = list(feed_of(data, manifest, plan_of(manifest, unit="clicks")).batches(0))
    assert sum(batch.num_impressions for batch in batches) == plan_of(manifest, unit="clicks").num_impressions
    for batch in batches:
        expected = [slowly(raw[impression][1], price) for impression in batch.impression_id.tolist()]
        np.testing.assert_allclose(batch.impression_numeric[:, 0], expected, atol=1e-7)


def test_a_deviation_of_0_and_no_moments_at_all_give_0() -> None:
    values = np.array([3.0, 3.0, 4.0], np.float32)
    entry = ManifestField("x", "1", "context", "one", False, 0, "", "", kind="numeric", mean=3.0, std=0.0)
    assert squash(values, entry).tolist() == [0.0, 0.0, 0.0]
    assert squash(values, dataclasses.replace(entry, mean=None, std=None)).tolist() == [0.0, 0.0, 0.0]
    assert squash(values, dataclasses.replace(entry, std=0.5)).tolist() == [0.0, 0.0, np.float32(math.tanh(2.0))]


def test_a_large_mean_costs_no_digits() -> None:
    entry = ManifestField("x", "1", "context", "one", False, 0, "", "", kind="numeric", mean=1e8, std=16.0)
    assert squash(np.array([1e8 + 8], np.float32), entry)[0] == np.float32(math.tanh(0.5))


def reference_log_odds(trainer: Trainer, manifest: Manifest, row: dict[str, Any], place: int) -> list[float]:
    """The logit of each tower for one impression, in NumPy, from the raw row."""
    tables = {shard.table: shard.weight.numpy().astype(np.float64) for shard in trainer.model.shards}
    starts = {name: sum(row[f"{name}__length"][:place]) for name in ("item_intention", "user_item_brands")}
    halves: dict[str, list[np.ndarray]] = {"context": [], "impression": []}
    for entry in manifest.fields_of(stored=INDEX):
        table, stored = tables[entry.name][:, :18], row[entry.name]
        if entry.arity == "one":
            halves[entry.scope].append(table[stored if entry.scope == "context" else stored[place]])
            continue
        first, last = 0, len(stored)
        if entry.scope == "impression":
            first = starts[entry.name]
            last = first + row[f"{entry.name}__length"][place]
        weight = np.array(row[f"{entry.name}__weight"][first:last] if entry.weighted else [1.0] * (last - first))
        total = np.abs(weight).sum()
        halves[entry.scope].append((weight / total) @ table[stored[first:last]] if total else np.zeros(18))
    halves["context"].append(np.array([slowly(row["user_spend"], field_of(manifest, "user_spend"))]))
    halves["impression"].append(np.array([slowly(row["item_price"][place], field_of(manifest, "item_price"))]))
    logits = []
    for tower in trainer.model.towers.children():
        own = {name: value.detach().numpy().astype(np.float64) for name, value in tower.named_parameters()}
        hidden = own["context_weight"] @ np.concatenate(halves["context"]) + own["first_bias"]
        hidden = hidden + own["impression_weight"] @ np.concatenate(halves["impression"])
        for layer in range(2):
            hidden = own[f"weights.{layer}"] @ np.maximum(hidden, 0) + own[f"biases.{layer}"]
        logits.append(float(hidden[0]))
    return logits


def test_the_network_equals_numpy_on_the_raw_rows(data: Path, tmp_path: Path) -> None:
    manifest = load_manifest(data)
    settings = tiny_settings(data, tmp_path / "run")
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        take_steps(trainer, 3)
        batch = next(iter(trainer.feed.batches(0)))
        logits = list(trainer.model.predict(batch).values())
        where = {impression: place for place, impression in enumerate(batch.impression_id.tolist())}
        num_compared = 0
        for file in manifest.files_of("train"):
            for row in pq.read_table(data / file.path).to_pylist():
                for place, impression in enumerate(row["impression_id"]):
                    if impression in where:
                        expected = reference_log_odds(trainer, manifest, row, place)
                        found = [logit[where[impression]].item() for logit in logits]
                        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
                        num_compared += 1
        assert num_compared == batch.num_impressions


def without_embeddings(data: Path, out: Path) -> TrainSettings:
    """Tables that start at 0 and stay there: only the numbers can be learned from."""
    settings = tiny_settings(data, out, batch_size=32, epochs=8)
    settings.embedding.init_bound = 0.0
    settings.optimizer.embeddings.lr = 1e-9
    settings.optimizer.towers.lr = 0.02
    return settings


def fit_and_evaluate(settings: TrainSettings) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.fit()
        evaluate_split(Path(settings.out), settings, "test", None, world)
        return weights(trainer)


def test_what_only_the_numbers_tell_is_learned_and_evaluated(data: Path, tmp_path: Path) -> None:
    fit_and_evaluate(without_embeddings(data, tmp_path / "run"))
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["ctr_auc"] > 0.65  # prices are higher where the item was clicked; a tenth of them is missing


def train_on_ranks(settings: TrainSettings, num_steps: int) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        losses = take_steps(trainer, num_steps)
        return weights(trainer) | {"losses": np.array(losses)}


def test_two_ranks_one_without_an_impression_train_like_one(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=8, numeric=True, splits={"train": 1.0})
    found = []
    for num_ranks in (1, 2):
        settings = tiny_settings(tmp_path / "data", tmp_path / f"run-{num_ranks}", batch_size=8)
        settings.optimizer.embeddings.name = "sgd"
        settings.sharding.default = "row_wise"
        ranks = run_ranks(train_on_ranks, num_ranks, tmp_path / f"ranks-{num_ranks}", settings, 100)
        found.append(merged([{k: v for k, v in rank.items() if not k.startswith("tables/")} for rank in ranks]))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_types_of_numeric_columns_are_checked(own: tuple[Path, Manifest]) -> None:
    path, manifest = own
    table = first_table(path, manifest)
    place = table.schema.get_field_index("user_spend")
    changed = with_table(path, manifest, table.set_column(place, "user_spend", table["user_spend"].cast(pa.float64())))
    assert "column user_spend has type double where the manifest's fields imply float" in error_of(path, changed)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["user_spend", "item_price"])
def test_a_value_that_is_not_finite_is_refused(own: tuple[Path, Manifest], column: str, value: float) -> None:
    path, manifest = own
    table = first_table(path, manifest)
    rows = table[column].to_pylist()
    rows[1] = value if column == "user_spend" else [value, *rows[1][1:]]
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, column, pa.array(rows, table.schema.field(column).type))
    told = error_of(path, with_table(path, manifest, changed))
    assert f"column {column}: a value that is not finite (a missing one is null)" in told


def test_a_list_of_another_length_is_refused(own: tuple[Path, Manifest]) -> None:
    path, manifest = own
    table = first_table(path, manifest)
    rows = table["item_price"].to_pylist()
    place = table.schema.get_field_index("item_price")
    changed = table.set_column(place, "item_price", pa.array([[*rows[0], 1.0], *rows[1:]], pa.list_(pa.float32())))
    told = error_of(path, with_table(path, manifest, changed))
    assert "column item_price: lists of another length than impression_id's" in told


@pytest.mark.parametrize("moments", [{"mean": math.nan}, {"std": math.inf}, {"std": -1.0}])
def test_moments_that_cannot_be_are_refused(own: tuple[Path, Manifest], moments: dict[str, float]) -> None:
    path, manifest = own
    with pytest.raises(InputError, match=r"numeric field item_price mean=.* and std=.*, which is not possible"):
        feed_of(path, replaced(manifest, "item_price", **moments))


def test_settings_of_tables_are_refused_for_a_numeric_field(own: tuple[Path, Manifest]) -> None:
    _, manifest = own
    for key in ("dims", "poolings"):
        settings = EmbeddingSettings(**{key: {"user_spend": 8 if key == "dims" else "sum"}})
        with pytest.raises(InputError, match=rf"embedding\.{key}\.user_spend: user_spend is numeric and goes to"):
            settings.check_fields(manifest.fields)
    with pytest.raises(InputError, match=r"sharding\.tables\.user_spend: user_spend is numeric and has no table"):
        ShardingSettings(tables={"user_spend": "row_wise"}).check_fields(manifest.fields)


def test_a_continuation_tells_a_field_that_became_numeric(own: tuple[Path, Manifest]) -> None:
    path, manifest = own
    settings = tiny_settings(path, path / "run")
    check_same_schema(
        "init_from=RUN", settings, manifest, settings, replaced(manifest, "user_spend", mean=1.0, std=2.0)
    )
    changed = replaced(manifest, "user_spend", kind=CATEGORICAL, num_rows=5)
    with pytest.raises(InputError, match=r"user_spend was kind=numeric and is categorical"):
        check_same_schema("init_from=RUN", settings, manifest, settings, changed)


def test_yesterdays_model_goes_on_with_its_numeric_fields(data: Path, tmp_path: Path) -> None:
    first = tiny_settings(data, tmp_path / "first")
    fit_and_evaluate(first)
    write_tiny_dataset(tmp_path / "today", num_contexts=150, numeric=True)
    manifest = load_manifest(tmp_path / "today")
    write_manifest(tmp_path / "today", replaced(manifest, "user_spend", mean=49.0, std=21.0))
    second = tiny_settings(tmp_path / "today", tmp_path / "second")
    second.init_from = first.out
    with join(first.world) as world:
        before = weights(Trainer(tiny_settings(data, tmp_path / "first", epochs=2), world))
    with join(second.world) as world:
        after = weights(Trainer(second, world))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
