"""Delta and Iceberg tables, and tables of Spark's catalogs: their rows at one version, which the settings then name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_log import ACTIONS, BOUNDARIES, EVENTS, IMPRESSIONS, write_parquet
from events_reading import find, read_impressions, settings_of
from references.events_rows import raw_id

from pipeline.config.features import FieldSettings
from pipeline.errors import InputError
from pipeline.preprocess import preprocess

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TABLE = {"path": "imp"}
CAT = FieldSettings("cat", "impression")
DAY = FieldSettings("day", "impression")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def impressions(*numbers: int, **columns: Any) -> pa.Table:
    num, ids = len(numbers), list(numbers)
    made = {"id": ids, "user": ["u"] * num, "item": ids, "view": ["v"] * num, "at": ids, "cat": [f"k{n}" for n in ids]}
    return pa.table(made | columns)


def read(spark: "SparkSession", root: Path, table: dict[str, Any], number: int = 0, **fields: FieldSettings) -> Any:
    link = root.parent / f"{number}"
    link.symlink_to(root)
    return read_impressions(spark, link, settings_of(table), **fields or {"cat": CAT})


def write_delta(path: Path, table: pa.Table, **options: Any) -> None:
    from deltalake import write_deltalake

    write_deltalake(str(path), table, **options)


def test_a_delta_table_is_read_at_its_newest_version_or_at_the_one_that_is_named(
    spark: "SparkSession", root: Path
) -> None:
    write_delta(root / "imp", impressions(1, 2))
    write_delta(root / "imp", impressions(3), mode="overwrite")
    write_delta(root / "imp", impressions(4), mode="append")
    assert sorted(read(spark, root, TABLE)) == ["3", "4"]
    assert sorted(read(spark, root, TABLE | {"as_of": "0"}, 1)) == ["1", "2"]
    log, _ = find(root, settings_of(TABLE))
    assert log.pin(settings_of(TABLE)).impressions.as_of == "2"
    assert log.pin(settings_of(TABLE)).determining()["impressions"]["as_of"] == "2"
    with pytest.raises(InputError, match="is a table of delta that cannot be opened"):
        find(root, settings_of(TABLE | {"as_of": "7"}))
    with pytest.raises(InputError, match="is no version of a Delta table"):
        find(root, settings_of(TABLE | {"as_of": "yesterday"}))


def test_partitions_of_delta_are_columns_of_their_types_and_older_files_lack_newer_columns(
    spark: "SparkSession", root: Path
) -> None:
    days = pa.array([19845, 19846], pa.date32())
    write_delta(root / "imp", impressions(1, 2, day=days, n=[7, 8]), partition_by=["day", "n"])
    newer = impressions(3, day=pa.array([None], pa.date32()), n=[9], more=["x"])
    write_delta(root / "imp", newer, mode="append", schema_mode="merge")
    found = read(spark, root, TABLE, cat=CAT, day=DAY, n=FieldSettings("n", "impression"), more=FieldSettings("more", "impression"))  # fmt: skip
    assert [found[id_]["day"] for id_ in "123"] == [raw_id("2024-05-02"), raw_id("2024-05-03"), None]
    assert [found[id_]["n"] for id_ in "123"] == [7, 8, 9]
    assert [found[id_]["more"] for id_ in "123"] == [None, None, raw_id("x")]
    at = read(spark, root, TABLE | {"timestamp": "day"}, 1)
    assert [at[id_]["at"] for id_ in "12"] == [19845 * 86_400_000, 19846 * 86_400_000]


def test_odd_values_of_partitions_are_found_again(spark: "SparkSession", root: Path) -> None:
    odd = ["a b", "50%", "x=y", "ü/ö", "%41"]
    write_delta(root / "imp", impressions(1, 2, 3, 4, 5, day=odd), partition_by=["day"])
    found = read(spark, root, TABLE, day=DAY)
    assert [found[id_]["day"] for id_ in "12345"] == [raw_id(text) for text in odd]


def test_a_delta_table_that_its_files_do_not_say_alone_is_refused(root: Path) -> None:
    write_delta(root / "imp", impressions(1, 2), configuration={"delta.enableDeletionVectors": "true"})
    with pytest.raises(InputError, match=r"may have rows deleted by deletion vectors .*table=NAME"):
        find(root, settings_of(TABLE))


def test_a_folder_whose_log_is_broken_is_never_read_as_loose_files(root: Path) -> None:
    (root / "imp/_delta_log").mkdir(parents=True)
    (root / "imp/_delta_log/00000000000000000001.json").write_text('{"remove":{"path":"0.parquet"}}\n')
    pq.write_table(impressions(1), root / "imp/0.parquet")
    with pytest.raises(InputError, match="is a table of delta that cannot be opened"):
        find(root, settings_of(TABLE))
    (root / "hudi/.hoodie").mkdir(parents=True)
    with pytest.raises(InputError, match="is a Hudi table"):
        find(root, settings_of({"path": "hudi"}))


def test_files_are_no_table_with_versions(root: Path) -> None:
    pq.write_table(impressions(1), root / "imp")
    for said in ({"as_of": "1"}, {"format": "delta"}):
        with pytest.raises(InputError, match="is a folder of files, not the table of Delta or Iceberg"):
            find(root, settings_of(TABLE | said))


@pytest.fixture
def catalog(root: Path) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog

    (root / "wh").mkdir()
    made = SqlCatalog("test", uri=f"sqlite:///{root.parent}/catalog.db", warehouse=f"file://{root}/wh")
    made.create_namespace("db")
    return made


ICEBERG = {"path": "wh/db/imp"}


def test_an_iceberg_table_is_read_at_its_newest_snapshot_or_at_the_one_that_is_named(
    spark: "SparkSession", root: Path, catalog: Any
) -> None:
    table = catalog.create_table("db.imp", schema=impressions(1).schema)
    table.append(impressions(1, 2))
    first = str(table.current_snapshot().snapshot_id)
    table.append(impressions(3))
    table.delete("id == 2")
    assert sorted(read(spark, root, ICEBERG)) == ["1", "3"]
    assert sorted(read(spark, root, ICEBERG | {"as_of": first}, 1)) == ["1", "2"]
    log, _ = find(root, settings_of(ICEBERG))
    assert log.pin(settings_of(ICEBERG)).impressions.as_of == str(table.current_snapshot().snapshot_id)
    metadata = table.metadata_location.removeprefix(f"file://{root}/")
    assert sorted(read(spark, root, {"path": metadata}, 2)) == ["1", "3"]


def test_columns_that_iceberg_adds_later_are_missing_and_renamed_ones_are_refused(
    spark: "SparkSession", root: Path, catalog: Any
) -> None:
    table = catalog.create_table("db.imp", schema=impressions(1).schema)
    table.append(impressions(1))
    with table.update_schema() as update:
        from pyiceberg.types import StringType

        update.add_column("more", StringType())
    table.append(impressions(2, more=["x"]))
    found = read(spark, root, ICEBERG, more=FieldSettings("more", "impression"))
    assert [found[id_]["more"] for id_ in "12"] == [None, raw_id("x")]
    with table.update_schema() as update:
        update.rename_column("cat", "kind")
    with pytest.raises(InputError, match=r"has the column 'kind' of .* under its earlier name 'cat'"):
        find(root, settings_of(ICEBERG))


def test_two_newest_metadata_files_are_for_the_catalog_to_decide(root: Path, catalog: Any) -> None:
    table = catalog.create_table("db.imp", schema=impressions(1).schema)
    table.append(impressions(1))
    path = Path(table.metadata_location.removeprefix("file://"))
    path.with_name(path.name[:6] + "other.metadata.json").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="has two newest metadata files"):
        find(root, settings_of(ICEBERG))


def test_a_file_that_the_log_names_and_that_is_gone_is_named(root: Path) -> None:
    write_delta(root / "imp", impressions(1))
    file = next((root / "imp").glob("*.parquet"))
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name} is not there, and the log of its table names it"):
        find(root, settings_of(TABLE))


def test_tables_of_catalogs_are_read_and_pinned_by_their_content(spark: "SparkSession", root: Path) -> None:
    spark.sql(f"CREATE TABLE shown USING parquet LOCATION '{root}/shown' AS SELECT 1 id, named_struct('id', 'ada') user, 5 item, 'v' view, timestamp'1970-01-01 00:00:07' at, array('a', null) tags")  # fmt: skip
    try:
        spark.sql(
            f"CREATE TABLE acted USING csv LOCATION '{root}/acted' AS SELECT 'ada' user, 5 item, 'click' action, 8 at"
        )
        named = {"table": "shown", "user": ["user.id"]}
        settings = settings_of(named, {"table": "default.acted"})
        found = read_impressions(spark, root, settings, item=FieldSettings("item", "impression"))
        assert [(row["user"], row["at"], row["item"], row["status"]) for row in found.values()] == [
            ("ada", 7000, 5, "good")
        ]
        log, _ = find(root, settings)
        pinned = log.pin(settings)
        assert pinned.impressions.as_of is not None
        assert pinned.impressions.as_of.startswith("1 rows, ")
        again, _ = find(root, pinned)
        assert again.pin(pinned) == pinned
        spark.sql("INSERT INTO shown SELECT 1 id, named_struct('id', 'ada') user, 5 item, 'v' view, timestamp'1970-01-01 00:00:07' at, array('a', null) tags")  # fmt: skip
        with pytest.raises(InputError, match=r"holds 2 rows, .* not 1 rows, .* as as_of says"):
            find(root, pinned)
    finally:
        spark.sql("DROP TABLE shown")
        spark.sql("DROP TABLE IF EXISTS acted")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.imp", "cannot be read by Spark"),
        ("a; DROP TABLE b", "is no name of a table"),
        ("(SELECT 1)", "is no name of a table"),
    ],
)
@pytest.mark.usefixtures("spark")
def test_a_name_that_no_catalog_knows_is_one_sentence(
    root: Path, capfd: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=f"source.events.impressions.table=.*{sentence}"):
        find(root, settings_of({"table": name}))
    assert not capfd.readouterr().err


def test_a_dataset_of_catalog_tables_has_their_versions_in_its_manifest_and_a_changed_table_is_another_one(
    spark: "SparkSession", tmp_path: Path, preprocess_settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows in (("impressions", IMPRESSIONS), ("actions", ACTIONS)):
        write_parquet(tmp_path / "files", name, rows)
        spark.sql(f"CREATE TABLE {name} USING parquet LOCATION '{tmp_path}/files/{name}'")
    try:
        tables = [f"source.events.{name}.table={name}" for name in ("impressions", "actions")]
        overrides = [*EVENTS, BOUNDARIES, *tables]
        settings = preprocess_settings("nowhere", tmp_path / "out", *overrides)
        manifest = preprocess(settings)
        wanted = preprocess(preprocess_settings(tmp_path / "files", tmp_path / "other", *EVENTS, BOUNDARIES))
        assert manifest.files == wanted.files
        assert manifest.sources == ()
        pinned = manifest.settings["source"]["events"]["impressions"]["as_of"]
        assert pinned.startswith(f"{len(IMPRESSIONS)} rows, ")
        assert f"impressions: impressions as of {pinned}" in capsys.readouterr().out
        assert preprocess(settings) == manifest
        spark.sql("INSERT INTO actions SELECT * FROM actions")
        with pytest.raises(InputError, match="holds a finished dataset made with other settings"):
            preprocess(settings)
    finally:
        for name in ("impressions", "actions"):
            spark.sql(f"DROP TABLE IF EXISTS {name}")
