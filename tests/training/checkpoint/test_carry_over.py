from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from ranks import Arrays, run_ranks
from tiny_dataset import FIELDS, write_manifest, write_tiny_dataset
from tiny_run import tiny_settings, weights

from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from training.distributed.settings import ShardingSettings
from training.distributed.world import join
from training.model.counter_random import uniform_rows
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

NUM_NEW_ITEMS = 7


def grown(path: Path) -> None:
    """The same impressions; item_id's vocabulary has ids that are new, one that is gone, and another order."""
    manifest = write_tiny_dataset(path, num_contexts=40)
    num_rows = FIELDS["item_id"][4]
    kept = 1000 + np.arange(2, num_rows)[::-1][:-1]  # raw id 1002 is gone
    raw_id = np.concatenate([kept[:5], 5000 + np.arange(NUM_NEW_ITEMS), kept[5:]])
    index = np.arange(2, 2 + len(raw_id))
    table = pa.table({"raw_id": raw_id, "index": pa.array(index, pa.int32()), "count": np.full(len(index), 9)})
    pq.write_table(table, path / "vocabulary/item_id.parquet")
    known = {
        "num_rows": 2 + len(raw_id),
        "vocabulary_xxh3": xxhash.xxh3_64_hexdigest((path / "vocabulary/item_id.parquet").read_bytes()),
    }
    fields = [replace(entry, **known) if entry.name == "item_id" else entry for entry in manifest.fields]
    write_manifest(path, replace(manifest, fields=tuple(fields)))


def built(settings: TrainSettings) -> Arrays:
    """This rank's state before the first step: rows under their table, first row and part."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        found = {name: value for name, value in weights(trainer).items() if name.startswith("towers/")}
        for shard in trainer.model.shards:
            for part, rows in {"weight": shard.weight, **shard.optimizer}.items():
                found[f"tables/{shard.table}/{shard.first_row:03d}/{part}"] = rows.numpy().copy()
        return found


def rows_of(ranks: list[Arrays], table: str, part: str) -> np.ndarray:
    pieces = {name: rows for rank in ranks for name, rows in rank.items() if name.startswith(f"tables/{table}/")}
    return np.concatenate([pieces[name] for name in sorted(pieces) if name.endswith(f"/{part}")])


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    """A finished run on data/, and what it ended with."""
    folder = tmp_path_factory.mktemp("continuation")
    write_tiny_dataset(folder / "data", num_contexts=40)
    grown(folder / "grown")
    settings = tiny_settings(folder / "data", folder / "run", batch_size=32)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.fit()
        return folder, weights(trainer)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_old_ids_keep_their_rows_and_new_ones_start_fresh(
    yesterday: tuple[Path, Arrays], tmp_path: Path, sharding: str
) -> None:
    folder, before = yesterday
    settings = tiny_settings(folder / "grown", tmp_path / "run", batch_size=32)
    settings.init_from, settings.sharding = str(folder / "run"), ShardingSettings(sharding)
    ranks = run_ranks(built, 2, tmp_path / "ranks", settings)
    old_index = {row["raw_id"]: row["index"] for row in vocabulary(folder / "data")}
    fresh = uniform_rows(settings.seed, "item_id", 0, 60, 18, settings.embedding.init_bound)
    found, momentum = rows_of(ranks, "item_id", "weight"), rows_of(ranks, "item_id", "momentum1")
    same = {0: 0, 1: 1} | {
        row["index"]: old_index[row["raw_id"]] for row in vocabulary(folder / "grown") if row["raw_id"] in old_index
    }
    assert len(found) == len(same) + NUM_NEW_ITEMS
    for row in range(len(found)):
        if row in same:
            np.testing.assert_array_equal(found[row], before["tables/item_id"][same[row]])
            assert momentum[row] == before["tables/item_id/momentum1"][same[row]]
        else:
            np.testing.assert_array_equal(found[row, :18], fresh[row])
            assert momentum[row] == 0
    np.testing.assert_array_equal(rows_of(ranks, "user_id", "weight"), before["tables/user_id"])
    assert momentum.max() > 0
    for name, value in before.items():
        if name.startswith("towers/"):
            np.testing.assert_array_equal(ranks[0][name], value)


def vocabulary(data: Path) -> list[dict]:
    return pq.read_table(data / "vocabulary/item_id.parquet").to_pylist()


@pytest.mark.parametrize("name", ["data", "grown"])
def test_a_vocabulary_reversed_since_then_is_refused_instead_of_mixing_up_rows(
    yesterday: tuple[Path, Arrays], tmp_path: Path, name: str
) -> None:
    folder, _ = yesterday
    path = folder / name / "vocabulary/item_id.parquet"
    whole = path.read_bytes()
    settings = tiny_settings(folder / "grown", tmp_path / "run", batch_size=32)
    settings.init_from = str(folder / "run")
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "raw_id", table["raw_id"].combine_chunks()[::-1]), path)
    refused = rf"vocabulary/item_id.parquet has the checksum \w+ where {folder / name}/manifest.json says \w+"
    try:
        with join(settings.world) as world, pytest.raises(InputError, match=refused):
            Trainer(settings, world)
    finally:
        path.write_bytes(whole)


def test_another_schema_is_refused_with_all_differences(yesterday: tuple[Path, Arrays], tmp_path: Path) -> None:
    folder, _ = yesterday
    manifest: Manifest = write_tiny_dataset(tmp_path / "data", num_contexts=40)
    first, *others = manifest.fields
    fields = [replace(first, name="shopper", vocabulary="vocabulary/user_id.parquet"), *others[:-1]]
    fields.append(replace(others[-1], weighted=False))
    write_manifest(tmp_path / "data", replace(manifest, fields=tuple(fields)))
    settings = tiny_settings(tmp_path / "data", tmp_path / "run", batch_size=32)
    settings.init_from = str(folder / "run")
    settings.model.towers.hidden = [4]
    told = (
        r"cannot go on with .*: the field user_id is gone; the field shopper is new; user_item_brands was weighted=True "
        r"and is False; model\.towers\.hidden was \[16, 8\] and is \[4\]; give a dataset"
    )
    with join(settings.world) as world, pytest.raises(InputError, match=told):
        Trainer(settings, world)


def test_a_run_without_a_checkpoint_is_refused(yesterday: tuple[Path, Arrays], tmp_path: Path) -> None:
    folder, _ = yesterday
    settings = tiny_settings(folder / "data", tmp_path / "run")
    settings.init_from = str(tmp_path / "nothing")
    with join(settings.world) as world, pytest.raises(InputError, match=r"init_from=\S+nothing has no config\.yaml"):
        Trainer(settings, world)
