"""Dense fields through the whole chain: event log, dataset, inspection, feed, towers, ranks, resumption, the day after."""

import dataclasses
import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from event_log import IMPRESSIONS, Row, action, impression, written
from ranks import Arrays, run_ranks
from tiny_run import merged, take_steps, tiny_settings, weights

from pipeline.audit.card import card
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.decode import decode_rows
from pipeline.dataset.manifest import Manifest, ManifestField, load_manifest
from pipeline.errors import InputError
from pipeline.preprocess import preprocess
from training.distributed.rank_batches import RankBatch
from training.distributed.world import join
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.feed.settings import FeedSettings
from training.planning.memory_estimate import widths
from training.run.continuation import check_same_schema
from training.run.evaluate import evaluate_split
from training.run.interrupts import EXIT_REQUEUE
from training.run.settings import TrainSettings
from training.run.trainer import StepOutcome, Trainer

Settings = Callable[..., PreprocessSettings]
IMAGE = "+features.fields.item_image={raw_id: image, scope: impression, kind: dense, width: 3}"
TASTE = "+features.fields.user_taste={raw_id: taste, scope: context, kind: dense, width: 2, standardize: false}"
PRICE = "+features.fields.item_price={raw_id: price, scope: impression, kind: numeric}"
FIELDS = (IMAGE, TASTE, PRICE)
SMALL = ("rows.impressions_per_row_group=40", "rows.impressions_per_file=90")
VECTORS = ("image", "taste")


def short(random: np.random.Generator, width: int, missing: Any) -> Any:
    """Three digits, which a float64 and a text both round to one float32; a fifth is missing."""
    return missing if random.random() < 0.2 else [float(f"{value:.3f}") for value in random.normal(2.0, 3.0, width)]


def log_of_vectors(missing: Any = None) -> tuple[list[Row], list[Row]]:
    """Impressions of page views of three, in all splits, and clicks; the vectors of a page view's user are the same."""
    random = np.random.default_rng(4)
    impressions, actions = [], []
    for view in range(130):
        hour, user = float(f"{0.35 * view:.2f}"), f"u{view % 9}"
        taste = short(random, 2, missing)
        for place in range(3):
            item = int(random.integers(1, 40))
            image, price = short(random, 3, missing), float(f"{random.normal(9, 2):.2f}")
            more = {"image": image, "taste": taste, "price": price, "city": "Oslo"}
            impressions.append(impression(10 * view + place, hour, user, item, f"view{view}", **more))
            if random.random() < 0.4:
                actions.append(action(hour + 0.1, user, item, "click"))
            if random.random() < 0.2:
                actions.append(action(hour + 0.2, user, item, "purchase"))
    actions.append(action(200, "eve", 1, "click"))
    return impressions, actions


@pytest.fixture(scope="module")
def data(spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings) -> Path:
    root = tmp_path_factory.mktemp("dense")
    overrides = written(root / "raw", "parquet", *log_of_vectors())
    preprocess(preprocess_settings(root / "raw", root / "out", *overrides, *SMALL, *FIELDS))
    return root / "out"


def logged() -> dict[int, Row]:
    """impression_id → the row of the log."""
    return {row["impression_id"]: row for row in log_of_vectors()[0]}


def field_of(manifest: Manifest, name: str) -> ManifestField:
    return next(entry for entry in manifest.fields if entry.name == name)


def stored(data: Path, split: str) -> dict[int, tuple[list[float], list[float]]]:
    """impression_id → (image, taste) as they stand in the files."""
    found = {}
    for file in load_manifest(data).files_of(split):
        for row in pq.read_table(data / file.path).to_pylist():
            assert len(row["user_taste"]) == 2
            assert len(row["item_image"]) == 3 * len(row["impression_id"])
            for place, impression_id in enumerate(row["impression_id"]):
                found[impression_id] = row["item_image"][3 * place : 3 * place + 3], row["user_taste"]
    return found


def reference(row: Row, entry: ManifestField, column: str) -> np.ndarray:
    """What the towers take of one vector: float32 of the log, scaled in float64."""
    if row[column] is None:
        return np.zeros(entry.num_inputs, np.float32)
    vector = np.array(row[column], np.float32).astype(np.float64)
    if entry.mean is None:
        return vector.astype(np.float32)
    return ((vector - np.array(entry.mean)) / np.array(entry.std)).astype(np.float32)


def test_every_vector_of_the_log_stands_in_the_files_and_a_missing_one_is_nans(data: Path) -> None:
    rows, seen = logged(), 0
    for split in ("train", "validation", "test"):
        for impression_id, vectors in stored(data, split).items():
            for vector, column, width in zip(vectors, VECTORS, (3, 2), strict=True):
                wanted = rows[impression_id][column] or [math.nan] * width
                np.testing.assert_array_equal(np.array(vector, np.float32), np.array(wanted, np.float32))
            seen += 1
    assert seen == len(rows)
    assert any(row["image"] is None for row in rows.values())
    schema = pq.read_schema(data / load_manifest(data).files[0].path)
    for name in ("item_image", "user_taste"):
        assert schema.field(name).type == pa.list_(pa.field("element", pa.float32(), nullable=False))
        assert not schema.field(name).nullable


def test_the_manifest_has_the_width_and_the_moments_of_each_number_over_the_train_split(data: Path) -> None:
    manifest, rows = load_manifest(data), logged()
    image, taste = field_of(manifest, "item_image"), field_of(manifest, "user_taste")
    assert image.parameters == {"width": 3, "standardize": True}
    assert taste.parameters == {"width": 2, "standardize": False}
    assert (taste.mean, taste.std) == (None, None)
    train = [rows[number]["image"] for number in stored(data, "train")]
    known = np.array([vector for vector in train if vector is not None], np.float32).astype(np.float64)
    np.testing.assert_allclose(image.mean, known.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(image.std, known.std(axis=0), rtol=1e-12)
    assert Manifest.from_json(manifest.to_json(), "copy") == manifest


@pytest.mark.parametrize(("form", "missing"), [("jsonl", []), ("jsonl", None), ("csv", []), ("fixed", None)])
@pytest.mark.slow
@pytest.mark.acceptance
def test_json_lines_csv_and_lists_of_fixed_size_give_the_files_that_parquet_gives(
    data: Path, tmp_path: Path, preprocess_settings: Settings, form: str, missing: Any
) -> None:
    impressions, actions = log_of_vectors(missing)
    overrides = written(tmp_path / "raw", "parquet" if form == "fixed" else form, impressions, actions)
    for path in (tmp_path / "raw" / "impressions").glob("*.parquet") if form == "fixed" else ():
        table = pq.read_table(path)
        for column, width in zip(VECTORS, (3, 2), strict=True):
            place = table.schema.get_field_index(column)
            fixed = pa.array(table[column].to_pylist(), pa.list_(pa.float32(), width))
            table = table.set_column(place, column, fixed)
        pq.write_table(table, path)
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides, *SMALL, *FIELDS))
    assert manifest.files == load_manifest(data).files
    assert manifest.fields == load_manifest(data).fields


@pytest.mark.parametrize("decoder", ["pages", "pyarrow"])
def test_both_decoders_feed_what_numpy_makes_of_the_log_numbers_before_vectors(data: Path, decoder: str) -> None:
    manifest, rows, seen = load_manifest(data), logged(), 0
    image, taste = field_of(manifest, "item_image"), field_of(manifest, "user_taste")
    plan = Plan(manifest.files_of("train"), batch_size=50, lanes=2, seed=3)
    pooling = {entry.name: "sum" for entry in manifest.fields}
    feed = Feed(str(data), manifest, "train", plan, pooling=pooling, settings=FeedSettings(decoder=decoder), rank=0, world_size=1)  # fmt: skip
    for batch in feed.batches(0):
        assert batch.context_numeric.shape == (batch.num_contexts, 2)
        assert batch.impression_numeric.shape == (batch.num_impressions, 1 + 3)
        for place, impression_id in enumerate(batch.impression_id.tolist()):
            context, row = int(batch.context_of_impression[place]), rows[impression_id]
            np.testing.assert_array_equal(batch.context_numeric[context], reference(row, taste, "taste"))
            np.testing.assert_array_equal(batch.impression_numeric[place, 1:], reference(row, image, "image"))
            seen += 1
    assert seen == len(stored(data, "train"))


def test_the_towers_take_the_vectors_behind_the_embeddings_and_the_plan_counts_them(data: Path, tmp_path: Path) -> None:
    settings, manifest, rows = tiny_settings(data, tmp_path / "run", batch_size=32), load_manifest(data), logged()
    image, taste = field_of(manifest, "item_image"), field_of(manifest, "user_taste")
    taken: list[tuple[torch.Tensor, ...]] = []
    ids: list[list[int]] = []
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        network = trainer.model.network
        assert network.widths == widths(manifest, settings.embedding)
        assert network.widths == (3 * 18 + 2, 3 * 18 + 1 + 3)
        trainer.model.towers.register_forward_pre_hook(lambda _, inputs: taken.append(inputs))
        for rank_batch in trainer.batches():
            ids.append(rank_batch.batch.impression_id.tolist())
            trainer.step(rank_batch)
    assert len(taken) == len(ids) > 3
    for (context_CD, impression_BD, index_B, *_), impression_ids in zip(taken, ids, strict=True):
        for place, impression_id in enumerate(impression_ids):
            row = rows[impression_id]
            np.testing.assert_array_equal(impression_BD[place, -3:].detach(), reference(row, image, "image"))
            np.testing.assert_array_equal(context_CD[index_B[place], -2:].detach(), reference(row, taste, "taste"))


class Interrupted(Trainer):
    """Gets SIGTERM at step `at` of the run."""

    at = -1

    def step(self, rank_batch: RankBatch) -> StepOutcome:
        if self.steps_done == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(rank_batch)


def fit(settings: TrainSettings, at: int = -1) -> Arrays:
    with join(settings.world) as world:
        trainer = Interrupted(settings, world)
        trainer.at = at
        status = trainer.fit()
        return weights(trainer) | {"status": np.array(status)}


def train_on_ranks(settings: TrainSettings, num_steps: int) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        losses = take_steps(trainer, num_steps)
        return weights(trainer) | {"losses": np.array(losses)}


@pytest.mark.acceptance
def test_two_ranks_train_like_one(data: Path, tmp_path: Path) -> None:
    found = []
    for num_ranks in (1, 2):
        settings = tiny_settings(data, tmp_path / f"run-{num_ranks}", batch_size=32)
        settings.optimizer.embeddings.name = "sgd"
        settings.sharding.default = "row_wise"
        ranks = run_ranks(train_on_ranks, num_ranks, tmp_path / f"ranks-{num_ranks}", settings, 100)
        found.append(merged([{k: v for k, v in rank.items() if not k.startswith("tables/")} for rank in ranks]))
    assert len(found[0]["losses"]) > 3
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.acceptance
def test_two_ranks_that_are_stopped_resume_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    run, whole = (
        tiny_settings(data, tmp_path / name, batch_size=32, dropout=0.2, epochs=2) for name in ("run", "whole")
    )
    expected = run_ranks(fit, 2, tmp_path / "a", whole)
    stopped = run_ranks(fit, 2, tmp_path / "b", run, 5)
    assert [int(rank["status"]) for rank in stopped] == [EXIT_REQUEUE] * 2
    found = run_ranks(fit, 2, tmp_path / "c", run)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_array_equal(one[name], value, err_msg=name)


def test_a_model_is_evaluated_and_carried_over_to_a_day_on_the_same_base_with_its_moments(
    data: Path, tmp_path: Path, preprocess_settings: Settings
) -> None:
    first = tiny_settings(data, tmp_path / "first")
    before = fit(first)
    with join(first.world) as world:
        evaluate_split(Path(first.out), first, "test", None, world)
    assert "ctr_auc" in json.loads((tmp_path / "first" / "metrics.json").read_text())
    impressions, actions = log_of_vectors()
    doubled = [row | {"image": row["image"] and [2 * value for value in row["image"]]} for row in impressions]
    overrides = [*written(tmp_path / "raw", "parquet", doubled, actions), f"vocabulary.base={data}"]
    today = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "today", *overrides, *SMALL, *FIELDS))
    for name in ("item_image", "user_taste"):
        old, new = field_of(load_manifest(data), name), field_of(today, name)
        assert (new.mean, new.std, new.parameters) == (old.mean, old.std, old.parameters)
    second = tiny_settings(tmp_path / "today", tmp_path / "second")
    second.init_from = first.out
    with join(second.world) as world:
        after = weights(Trainer(second, world))
    assert after.keys() == before.keys() - {"status"}
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_another_width_is_another_catalogue_for_a_base_and_for_yesterdays_model(
    data: Path, tmp_path: Path, preprocess_settings: Settings
) -> None:
    manifest, settings = load_manifest(data), tiny_settings(data, tmp_path / "run")
    fields = tuple(
        dataclasses.replace(entry, parameters=entry.parameters | {"width": 4}) if entry.name == "user_taste" else entry
        for entry in manifest.fields
    )
    with pytest.raises(InputError, match=r"user_taste was parameters={.*'width': 2} and is {.*'width': 4}"):
        check_same_schema("init_from=RUN", settings, manifest, settings, dataclasses.replace(manifest, fields=fields))
    overrides = [*written(tmp_path / "raw", "parquet", *log_of_vectors()), f"vocabulary.base={data}"]
    other = [IMAGE.replace("}", ", standardize: false}"), TASTE, PRICE]
    with pytest.raises(
        InputError, match=r"item_image was parameters={.*'standardize': True.*} and is {.*'standardize': False"
    ):
        preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides, *other))


def test_inspection_shows_the_width_and_the_first_numbers_and_the_audit_counts_vectors(data: Path) -> None:
    manifest, rows = load_manifest(data), logged()
    described = card(str(data), manifest)
    assert re.search(r"item_image +image +impression +a vector of 3 +standardized", described)
    assert re.search(r"user_taste +taste +context +a vector of 2 +as it is", described)
    shown = re.sub(r" +", " ", decode_rows(str(data), "train", 10_000))
    parts = {int(part.split()[0].rstrip(":")): part for part in re.split(r"\n impression ", shown)[1:]}
    assert len(parts) > 30
    for impression_id, part in parts.items():
        vector = rows[impression_id]["image"]
        assert f" item_image {'missing' if vector is None else ', '.join(f'{value:g}' for value in vector)}\n" in part
    train = [rows[number]["image"] for number in stored(data, "train")]
    known = np.array([vector for vector in train if vector is not None], np.float32).astype(np.float64)
    found = json.loads((data / "audit.json").read_text())["fields"]["item_image"]["train"]
    assert (found["records"], found["values"], found["without"]) == (len(train), len(known), len(train) - len(known))
    assert (found["mean"], found["std"]) == pytest.approx((known.mean(), known.std()), rel=1e-5)
    assert (found["min"], found["max"]) == (known.min(), known.max())
    leakage = json.loads((data / "audit.json").read_text())["leakage"]
    assert re.fullmatch(r"number [012]", leakage["auc"]["item_image"]["click"]["by"])
    assert "item_image" in (data / "audit.html").read_text()


BROKEN: list[Any] = [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [1.0, None, 3.0], [1.0, math.nan, 3.0], [1.0, math.inf, 3.0], [1e39, 1.0, 1.0]]  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", pytest.param("jsonl", marks=pytest.mark.acceptance)])
@pytest.mark.usefixtures("spark")
def test_a_vector_of_another_length_or_with_what_is_no_finite_number_is_in_quarantine_and_counted(
    tmp_path: Path, preprocess_settings: Settings, form: str
) -> None:
    broken = [impression(20 + place, 1, "eve", 1, "v9", image=vector) for place, vector in enumerate(BROKEN)]
    if form == "jsonl":
        broken.append(impression(30, 1, "eve", 1, "v9", image=[1.0, "two", 3.0]))
        broken.append(impression(31, 1, "eve", 1, "v9", image="1|2|3|4"))
    whole = [row | {"image": [0.5, -1.0, 2.0]} for row in IMPRESSIONS]
    overrides = written(tmp_path / "raw", form, whole + broken)
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides, IMAGE))
    assert manifest.audit["quarantined"]["bad_feature"] == len(broken)
    (file,) = manifest.audit["quarantine"]
    found = pq.read_table(tmp_path / "out" / file["path"]).to_pylist()
    ids = {str(json.loads(row["line"])["impression_id"]) for row in found if row["reason"] == "bad_feature"}
    assert ids == {str(row["impression_id"]) for row in broken}
    with pytest.raises(InputError, match=r"has bad_feature \(.* a vector has as many finite numbers as its width\)"):
        preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "no", *overrides, IMAGE, "checks.bad_feature=fail"))


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("image", pa.float64(), r"has double in the column 'image', where many values are needed"),
        ("image", pa.list_(pa.bool_()), r"has list<element: bool> in the column 'image', which is read as numbers"),
        ("image", pa.list_(pa.float32(), 5), r"has lists of 5 in the column 'image', and features.fields.item_image.width=3"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("spark")
def test_a_column_that_cannot_hold_vectors_of_the_width_is_refused_before_spark_reads_it(
    tmp_path: Path, preprocess_settings: Settings, column: str, kind: pa.DataType, message: str
) -> None:
    overrides = written(tmp_path / "raw", "parquet")
    for path in (tmp_path / "raw" / "impressions").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column(column, pa.nulls(len(table), kind)), path)
    with pytest.raises(InputError, match=message):
        preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides, IMAGE))
