"""A bucketized field through the whole chain: event log, dataset, inspection, plan, training, and the day after."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from event_log import IMPRESSIONS, written
from raw_log import random_log
from tiny_run import take_steps, tiny_settings, weights

from pipeline.audit.card import card
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.decode import decode_rows
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError
from pipeline.preprocess import preprocess
from training.checkpoint.carry_over import rows_before
from training.distributed.world import join
from training.planning.memory_estimate import table_plans
from training.run.continuation import check_same_schema
from training.run.trainer import Trainer

Settings = Callable[..., PreprocessSettings]
BOUNDARIES = [0.5, 1.5, 4.0]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")
STRENGTH = (
    "+features.fields.strength={raw_id: '508', scope: impression, kind: bucketized, boundaries: [0.5, 1.5, 4]}",
    "+features.fields.brands={raw_id: '127_14', scope: context, kind: bucketized, boundaries: [1]}",
)


@pytest.fixture(scope="module")
def data(spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings) -> Path:
    root = tmp_path_factory.mktemp("bucketized")
    raw = random_log(8).write(root / "raw")
    preprocess(preprocess_settings(raw, root / "out", *SMALL, *STRENGTH))
    return root / "out"


def with_boundaries(manifest: Manifest, name: str, boundaries: list[float]) -> Manifest:
    fields = [
        dataclasses.replace(entry, parameters={"boundaries": boundaries}, num_rows=len(boundaries) + 3)
        if entry.name == name
        else entry
        for entry in manifest.fields
    ]
    return dataclasses.replace(manifest, fields=tuple(fields))


def stored_buckets(data: Path, split: str = "train") -> dict[int, tuple[int, int]]:
    """impression_id → (strength, brands) as they stand in the files."""
    return {
        impression: (strength, row["brands"])
        for file in load_manifest(data).files_of(split)
        for row in pq.read_table(data / file.path).to_pylist()
        for impression, strength in zip(row["impression_id"], row["strength"], strict=True)
    }


def test_training_looks_up_the_row_of_each_bucket_and_learns_the_rows_that_it_saw(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run", batch_size=32)
    stored, manifest = stored_buckets(data), load_manifest(data)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        before = weights(trainer)
        places = {scope: [entry.name for entry in manifest.fields_of(scope)] for scope in ("context", "impression")}
        seen: set[int] = set()
        for batch in trainer.feed.batches(0):
            for name, bags, num_bags in (
                ("strength", batch.impression, batch.num_impressions),
                ("brands", batch.context, batch.num_contexts),
            ):
                place = places["impression" if name == "strength" else "context"].index(name)
                lengths = bags.lengths.reshape(-1, num_bags)
                first = int(lengths[:place].sum())
                assert lengths[place].tolist() == [1] * num_bags
                found = bags.values[first : first + num_bags].tolist()
                contexts = batch.context_of_impression.tolist()
                for at, impression in enumerate(batch.impression_id.tolist()):
                    wanted = stored[impression]
                    assert found[at if name == "strength" else contexts[at]] == wanted[name == "brands"]
                    seen.add(wanted[0])
        take_steps(trainer, 3)
        after = weights(trainer)
    moved = np.flatnonzero(np.any(after["tables/strength"] != before["tables/strength"], axis=1))
    assert before["tables/strength"].shape[0] == len(BOUNDARIES) + 3
    assert {0, 2} < seen  # missing ones, and two buckets or more
    assert 1 not in seen
    assert len(moved) > 1
    assert set(moved.tolist()) <= seen


def test_inspection_names_the_interval_of_a_bucket_and_says_what_is_missing(data: Path) -> None:
    shown = re.sub(r" +", " ", decode_rows(str(data), "train", 10_000))
    stored = stored_buckets(data)
    texts = {0: "missing", 2: "below 0.5", 3: "0.5 to below 1.5", 4: "1.5 to below 4", 5: "4 or more"}
    parts = re.split(r"\n impression ", shown)[1:]
    found = {int(part.split(":")[0]): re.search(r" strength (.*)", part).group(1) for part in parts}  # type: ignore[union-attr]
    assert len(found) > 10
    assert found == {impression: texts[stored[impression][0]] for impression in found}
    assert len(set(found.values())) > 2


def test_the_plan_has_a_table_of_the_buckets_and_the_card_says_what_it_is(data: Path) -> None:
    described = card(str(data), load_manifest(data))
    assert re.search(r"strength +508 +impression +a number +6 rows, buckets", described)
    assert re.search(r"brands +127_14 +context +a number +4 rows, buckets", described)
    tables = table_plans(load_manifest(data).fields_of(stored=INDEX), tiny_settings(data, data / "run"), 2)
    assert [sum(table.rows_of_rank) for table in tables if table.field.name == "strength"] == [6]


def test_other_boundaries_are_another_catalogue_for_a_base_and_for_yesterdays_model(
    data: Path, tmp_path: Path, preprocess_settings: Settings
) -> None:
    manifest = load_manifest(data)
    settings = tiny_settings(data, tmp_path / "run")
    check_same_schema("init_from=RUN", settings, manifest, settings, manifest)
    with pytest.raises(
        InputError, match=r"brands was parameters={'boundaries': \[1.0\]} and is {'boundaries': \[2.0\]}"
    ):
        check_same_schema("init_from=RUN", settings, manifest, settings, with_boundaries(manifest, "brands", [2.0]))
    raw = random_log(9).write(tmp_path / "raw")
    other = [STRENGTH[0], STRENGTH[1].replace("[1]", "[2]"), f"vocabulary.base={data}"]
    with pytest.raises(InputError, match=r"has another catalogue: brands was parameters="):
        preprocess(preprocess_settings(raw, tmp_path / "other", *SMALL, *other))
    today = preprocess(preprocess_settings(raw, tmp_path / "today", *SMALL, *STRENGTH, f"vocabulary.base={data}"))
    again = {entry.name: entry.parameters for entry in today.fields}
    assert again == {entry.name: entry.parameters for entry in manifest.fields}
    old, new = (next(entry for entry in of.fields if entry.name == "strength") for of in (manifest, today))
    assert rows_before(str(data), old, str(tmp_path / "today"), new).tolist() == list(range(6))


@pytest.mark.usefixtures("spark")
@pytest.mark.acceptance
def test_columns_of_an_event_log_are_bucketized_and_null_is_missing(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    prices = [9.5, 1.0, None, -2.0, 7.0, 0.5, 4.0, 1e3, 5.0]
    priced = [row | {"price": price} for row, price in zip(IMPRESSIONS, prices, strict=True)]
    price = "+features.fields.price={raw_id: price, scope: impression, kind: bucketized, boundaries: [0.5, 4, 9.5]}"
    number = "+features.fields.price_itself={raw_id: price, scope: impression, kind: numeric}"
    overrides = written(tmp_path / "raw", "parquet", priced)
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides, price, number))
    found: dict[int, tuple[int, float | None]] = {}
    for file in manifest.files:
        for row in pq.read_table(tmp_path / "out" / file.path).to_pylist():
            both = zip(row["price"], row["price_itself"], strict=True)
            found |= dict(zip(row["impression_id"], both, strict=True))
    assert found == {1: (5, 9.5), 2: (3, 1.0), 3: (0, None), 4: (2, -2.0), 5: (4, 7.0), 6: (3, 0.5), 7: (4, 4.0)}
