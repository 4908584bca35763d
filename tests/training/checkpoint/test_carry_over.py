import os
import shutil
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

from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError
from training.checkpoint.carry_over import rows_before
from training.distributed.settings import ShardingSettings
from training.distributed.world import join
from training.model.counter_random import uniform_rows
from training.model.settings import GraphSettings
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
    """A finished run on data/, and what it ended with; data/ has been deleted since, but for its vocabularies in kept/."""
    folder = tmp_path_factory.mktemp("continuation")
    write_tiny_dataset(folder / "data", num_contexts=40)
    grown(folder / "grown")
    settings = tiny_settings(folder / "data", folder / "run", batch_size=32)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.fit()
        ended = weights(trainer)
    shutil.copytree(folder / "data/vocabulary", folder / "kept/vocabulary")
    shutil.rmtree(folder / "data")
    return folder, ended


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_old_ids_keep_their_rows_and_new_ones_start_fresh(
    yesterday: tuple[Path, Arrays], tmp_path: Path, sharding: str
) -> None:
    folder, before = yesterday
    settings = tiny_settings(folder / "grown", tmp_path / "run", batch_size=32)
    settings.init_from, settings.sharding = str(folder / "run"), ShardingSettings(sharding)
    ranks = run_ranks(built, 2, tmp_path / "ranks", settings)
    old_index = {row["raw_id"]: row["index"] for row in vocabulary(folder / "kept")}
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


@pytest.mark.parametrize("name", ["run/dataset", "grown"])
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
    settings = tiny_settings(folder / "grown", tmp_path / "run")
    settings.init_from = str(tmp_path / "nothing")
    with join(settings.world) as world, pytest.raises(InputError, match=r"init_from=\S+nothing has no config\.yaml"):
        Trainer(settings, world)


def test_an_id_that_the_model_does_not_know_reads_the_row_out_of_vocabulary_in_an_evaluation(
    yesterday: tuple[Path, Arrays],
) -> None:
    folder, _ = yesterday
    kept, grown_data = folder / "run/dataset", folder / "grown"
    old, new = (
        next(entry for entry in load_manifest(data).fields if entry.name == "item_id") for data in (kept, grown_data)
    )
    source = rows_before(str(kept), old, str(grown_data), new, 1)
    new_rows = [row["index"] for row in vocabulary(grown_data) if row["raw_id"] >= 5000]
    assert source[new_rows].tolist() == [1] * NUM_NEW_ITEMS
    fresh = rows_before(str(kept), old, str(grown_data), new)
    assert fresh[new_rows].tolist() == [-1] * NUM_NEW_ITEMS
    np.testing.assert_array_equal(np.delete(source, new_rows), np.delete(fresh, new_rows))


def head_start(
    folder: Path, tmp_path: Path, edges: list[str], losses: list, heads: tuple[str, ...] = ()
) -> TrainSettings:
    settings = tiny_settings(folder / "grown", tmp_path / "run", batch_size=32)
    settings.init_from, settings.seed = str(folder / "run"), 7
    settings.model.graph = GraphSettings(edges, losses, {"p_cvr": "conversion | click"}, heads=list(heads))
    return settings


CLICK, CONVERSION = "click | impression", "conversion | click"
IPS = {"of": CONVERSION, "kind": "ips", "propensity": "click", "clip": 10.0}
DR = {"of": CONVERSION, "kind": "dr", "propensity": "click", "imputation": "conversion_error", "clip": 10.0}


@pytest.mark.parametrize(
    ("edges", "losses", "heads", "saved_number", "told"),
    [
        ([CLICK, CONVERSION], ["click", IPS, "conversion"], (), {0: 0, 1: 1}, []),
        ([CONVERSION, CLICK], ["click", "conversion"], (), {0: 1, 1: 0}, []),
        ([CONVERSION], [CONVERSION], (), {0: 1}, [f"its tower of `{CLICK}` is not used"]),
        (
            [CLICK, CONVERSION],
            ["click", DR],
            ("conversion_error",),
            {0: 0, 1: 1, 2: None},
            ["the run has no tower of `conversion_error | impression`, which starts at its initial values"],
        ),
    ],
    ids=["other losses", "another order", "a head less", "a head more"],
)
def test_towers_follow_the_names_of_their_heads_and_the_others_are_said(
    yesterday: tuple[Path, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str], edges: list[str], losses: list,
    heads: tuple[str, ...], saved_number: dict[int, int | None], told: list[str],
) -> None:  # fmt: skip
    folder, before = yesterday
    settings = head_start(folder, tmp_path, edges, losses, heads)
    found, fresh = built(settings), built(replace(settings, init_from=None, out=str(tmp_path / "fresh")))
    names = {name.split("/")[1].partition(".")[::2] for name in found if name.startswith("towers/")}
    assert {int(number) for number, _ in names} == set(saved_number)
    for number, rest in names:
        saved, place = saved_number[int(number)], f"towers/{number}.{rest}"
        expected = fresh[place] if saved is None else before[f"towers/{saved}.{rest}"]
        np.testing.assert_array_equal(found[place], expected)
    said = [line for line in capsys.readouterr().err.splitlines() if "tower" in line]
    assert said == [f"init_from={folder / 'run'}: {line}" for line in told]
    with join(settings.world) as world:  # and it trains on, is saved, and resumes
        assert Trainer(settings, world).fit() == 0
        assert Trainer(replace(settings, epochs=2), world).fit() == 0


def test_the_model_of_another_step_is_taken_where_it_is_named(yesterday: tuple[Path, Arrays], tmp_path: Path) -> None:
    folder, before = yesterday
    last = sorted((folder / "run/checkpoints").iterdir())[-1]
    settings = tiny_settings(folder / "grown", tmp_path / "run", batch_size=32)
    settings.init_from = str(folder / "run")
    for which in (last.name.replace("step-000000", "step-"), "best"):
        settings.init_from_checkpoint, settings.out = which, str(tmp_path / which)
        np.testing.assert_array_equal(built(settings)["towers/0.first_bias"], before["towers/0.first_bias"])
    settings.init_from_checkpoint = "step-3"
    with (
        join(settings.world) as world,
        pytest.raises(InputError, match=r"init_from_checkpoint=step-3: .* no checkpoint"),
    ):
        Trainer(settings, world)


@pytest.mark.parametrize("harm", ["reversed", "changed", "missing", "a FIFO", "no Parquet"])
def test_a_vocabulary_that_is_not_the_one_of_the_run_is_refused(
    yesterday: tuple[Path, Arrays], tmp_path: Path, harm: str
) -> None:
    folder, _ = yesterday
    run = shutil.copytree(folder / "run", tmp_path / "before")
    victim = run / "dataset/vocabulary/item_id.parquet"
    table = pq.read_table(victim)
    content = victim.read_bytes()
    victim.unlink()
    if harm == "reversed":
        table = table.set_column(0, "raw_id", table["raw_id"].take(np.arange(len(table))[::-1]))
        pq.write_table(table, victim)
    elif harm == "changed":
        victim.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    elif harm == "a FIFO":
        os.mkfifo(victim)
    elif harm == "no Parquet":
        victim.write_text("?")
    settings = tiny_settings(folder / "grown", tmp_path / "run", batch_size=32)
    settings.init_from = str(run)
    told = r"item_id\.parquet (has the checksum|is missing|cannot be read)"
    with join(settings.world) as world, pytest.raises(InputError, match=told):
        Trainer(settings, world)
