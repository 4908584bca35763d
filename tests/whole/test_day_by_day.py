"""Batches day by day: a base's indices stay, new ids follow, and yesterday's model goes on with its rows."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from dataset_checks import assert_dataset_equals_reference
from raw_log import random_log, shifted
from tiny_run import tiny_settings, weights

from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError
from pipeline.features.base_vocabulary import extend, with_room
from pipeline.features.fields import Field
from pipeline.features.vocabulary import Vocabulary
from pipeline.passes.job import Job
from pipeline.preprocess import preprocess
from training.distributed.world import join
from training.model.counter_random import uniform_rows
from training.run.trainer import Trainer

Settings = Callable[..., PreprocessSettings]
FIELDS = (
    "features=aliccp_numeric", "+features.fields.item_intention.hash_buckets=7", "rows.max_impressions=8",
    "rows.impressions_per_row_group=50",
)  # fmt: skip


def vocabulary(*pairs: tuple[int, int]) -> Vocabulary:
    ids, counts = zip(*pairs, strict=True) if pairs else ((), ())
    return Vocabulary(np.array(ids, np.int64), np.array(counts, np.int64))


def test_the_base_comes_first_in_its_order_with_todays_counts_and_new_ids_behind() -> None:
    base = vocabulary((9, 4), (2, 4), (30, 3), (5, 1))
    whole = extend(base, vocabulary((2, 8), (5, 1)), vocabulary((7, 6), (1, 2)))
    assert whole.id_N.tolist() == [9, 2, 30, 5, 7, 1]
    assert whole.count_N.tolist() == [0, 8, 0, 1, 6, 2]
    assert extend(vocabulary(), vocabulary(), vocabulary((7, 6))).id_N.tolist() == [7]


def test_the_room_for_new_ids_is_what_the_base_leaves_of_max_ids() -> None:
    fields = [Field(name, name, "context", "one", False, 2, most) for name, most in (("a", None), ("b", 3), ("c", 1))]
    old = [vocabulary((1, 1), (2, 1))] * 3
    assert [entry.max_ids for entry in with_room(fields, old)] == [None, 1, 0]


@pytest.fixture(scope="module")
def days(
    spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings
) -> tuple[Path, list[PreprocessSettings]]:
    """Three days: the second knows some ids of the first, the third is the second over again."""
    root = tmp_path_factory.mktemp("days")
    first = random_log(21).write(root / "raw1")
    second = shifted(random_log(22), 15).write(root / "raw2")
    chosen = [preprocess_settings(first, root / "day1", *FIELDS)]
    for day in (2, 3):
        chosen.append(
            preprocess_settings(second, root / f"day{day}", *FIELDS, f"vocabulary.base={root / f'day{day - 1}'}")
        )
    for settings in chosen:
        preprocess(settings)
    return root, chosen


def rows_of(root: Path, day: int, name: str) -> list[tuple[int, int, int]]:
    entry = next(entry for entry in load_manifest(root / f"day{day}").fields if entry.name == name)
    table = pq.read_table(root / f"day{day}" / entry.vocabulary)
    return list(zip(*(table[column].to_pylist() for column in ("raw_id", "index", "count")), strict=True))


def test_every_value_of_a_day_with_a_base_equals_the_reference(days: tuple[Path, list[PreprocessSettings]]) -> None:
    root, chosen = days
    for day, settings in enumerate(chosen, start=1):
        assert_dataset_equals_reference(root / ("raw1" if day == 1 else "raw2"), root / f"day{day}", settings)


def test_indices_stay_new_ids_follow_and_ids_that_do_not_occur_count_0(
    days: tuple[Path, list[PreprocessSettings]],
) -> None:
    root, _ = days
    one, two = rows_of(root, 1, "item_id"), rows_of(root, 2, "item_id")
    assert [row[:2] for row in two[: len(one)]] == [row[:2] for row in one]
    assert len(two) > len(one)
    assert {raw_id for raw_id, _, count in two[: len(one)] if count == 0} == {raw_id for raw_id, *_ in one} - set(
        range(16, 60)
    )
    behind = [(-count, raw_id) for raw_id, _, count in two[len(one) :]]
    assert behind == sorted(behind)
    assert [row[:2] for row in rows_of(root, 3, "item_id")] == [row[:2] for row in two]


def test_the_manifest_has_the_lineage_the_bases_moments_and_no_path(
    days: tuple[Path, list[PreprocessSettings]],
) -> None:
    root, _ = days
    hashes = [xxhash.xxh3_64_hexdigest((root / f"day{day}/manifest.json").read_bytes()) for day in (1, 2, 3)]
    one, two, three = (load_manifest(root / f"day{day}") for day in (1, 2, 3))
    assert (one.lineage, two.lineage, three.lineage) == ((), (hashes[0],), (hashes[1], hashes[0]))
    assert three.settings["vocabulary"]["base"] == hashes[1]
    assert moments(one) == moments(two) == moments(three)
    assert str(root) not in (root / "day3/manifest.json").read_text()
    assert f"{root}/day2" in (root / "day3/run.json").read_text()


def moments(manifest: Manifest) -> list[tuple[float | None, float | None]]:
    return [(entry.mean, entry.std) for entry in manifest.fields]


@pytest.mark.usefixtures("spark")
def test_of_the_base_only_the_manifest_and_the_vocabularies_are_read(
    days: tuple[Path, list[PreprocessSettings]], tmp_path: Path, preprocess_settings: Settings
) -> None:
    root, _ = days
    for name in ("manifest.json", "vocabulary"):
        target = shutil.copytree if name == "vocabulary" else shutil.copy
        (tmp_path / "base").mkdir(exist_ok=True)
        target(root / "day1" / name, tmp_path / "base" / name)
    settings = preprocess_settings(root / "raw2", tmp_path / "out", *FIELDS, f"vocabulary.base={tmp_path / 'base'}")
    preprocess(settings)
    assert (tmp_path / "out/manifest.json").read_bytes() == (root / "day2/manifest.json").read_bytes()
    stray = next((tmp_path / "base/vocabulary").glob("item_id*"))
    stray.write_bytes(b"?" + stray.read_bytes()[1:])
    settings.out = str(tmp_path / "other")
    with pytest.raises(InputError, match=r"item_id-\w+.parquet has the checksum \w+ where .*base/manifest.json says"):
        preprocess(settings)


@pytest.mark.usefixtures("spark")
def test_a_limit_that_the_base_has_reached_takes_no_new_ids_and_says_so(
    days: tuple[Path, list[PreprocessSettings]], tmp_path: Path, preprocess_settings: Settings,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root, _ = days
    ids, shops = (len(rows_of(root, 1, name)) for name in ("item_id", "item_shop"))
    limits = ("+features.fields.item_id.max_ids=3", f"+features.fields.item_shop.max_ids={shops + 2}")
    settings = preprocess_settings(
        root / "raw2", tmp_path / "out", *FIELDS, *limits, f"vocabulary.base={root / 'day1'}"
    )
    num_rows = {entry.name: entry.num_rows for entry in preprocess(settings).fields}
    assert (num_rows["item_id"], num_rows["item_shop"]) == (ids + 2, shops + 4)
    assert "item_id: the base has max_ids=3 ids or more, so no new one gets an index." in capsys.readouterr().out
    assert_dataset_equals_reference(root / "raw2", tmp_path / "out", settings)


def test_another_catalogue_is_refused_with_all_differences_before_spark_starts(
    days: tuple[Path, list[PreprocessSettings]], tmp_path: Path, preprocess_settings: Settings
) -> None:
    root, _ = days
    changes = (
        "~features.fields.user_age", "+features.fields.extra={raw_id: '3', scope: context}",
        "features.fields.position.raw_id='302'", "features.fields.item_intention.hash_buckets=8",
    )  # fmt: skip
    base = f"vocabulary.base={root / 'day1'}"
    told = (
        "has another catalogue: the field user_age is gone; the field extra is new; item_intention was hash_buckets=7 "
        "and is 8; position was raw_id=301 and is 302; give the features"
    )
    with pytest.raises(InputError, match=told):
        Job.of(preprocess_settings(root / "raw2", tmp_path / "out", *FIELDS, *changes, base))
    with pytest.raises(InputError, match=r"vocabulary.base=.*nothing does not exist"):
        Job.of(preprocess_settings(root / "raw2", tmp_path / "out", f"vocabulary.base={tmp_path}/nothing"))
    with pytest.raises(InputError, match="is out itself"):
        Job.of(preprocess_settings(root / "raw2", root / "day1", *FIELDS, base))


def test_a_run_of_day_one_goes_on_on_day_two_where_old_rows_keep_their_weights(
    days: tuple[Path, list[PreprocessSettings]], tmp_path: Path
) -> None:
    root, _ = days
    first = tiny_settings(root / "day1", tmp_path / "run1", batch_size=128)
    with join(first.world) as world:
        trainer = Trainer(first, world)
        trainer.fit()
        before = weights(trainer)
    second = tiny_settings(root / "day2", tmp_path / "run2", batch_size=128)
    second.init_from = str(tmp_path / "run1")
    with join(second.world) as world:
        trainer = Trainer(second, world)
        after = weights(trainer)
        for entry in trainer.manifest.fields:
            if entry.kind == "numeric":
                continue
            old = before[f"tables/{entry.name}"]
            np.testing.assert_array_equal(after[f"tables/{entry.name}"][: len(old)], old)
            rest = after[f"tables/{entry.name}"][len(old) :]
            fresh = uniform_rows(second.seed, entry.name, len(old), len(rest), 18, second.embedding.init_bound)
            np.testing.assert_array_equal(rest[:, :18], fresh)
            assert entry.name != "item_id" or len(rest) > 0
        trainer.fit()
