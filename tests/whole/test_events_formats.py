"""One log as every writer writes it by default, through the whole chain: the same dataset, byte for byte."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_log import ACTIONS, BOUNDARIES, EVENTS, IMPRESSIONS, MANY, Row

from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest
from pipeline.preprocess import preprocess

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]

Settings = Callable[..., PreprocessSettings]
Write = Callable[[Any, Path, list[Row]], None]


def with_times(rows: list[Row]) -> list[Row]:
    return [row | {"timestamp": datetime.fromtimestamp(row["timestamp"], UTC).replace(tzinfo=None)} for row in rows]


def as_text(rows: list[Row]) -> list[Row]:
    return [row | {"timestamp": row["timestamp"].isoformat()} for row in rows]


def write_pandas(_: Any, path: Path, rows: list[Row]) -> None:
    frame = pd.DataFrame(rows)
    frame["user_id"] = frame["user_id"].astype("category")
    assert str(frame["timestamp"].dtype) == "datetime64[ns]"
    path.mkdir()
    for part in range(2):
        frame[part::2].to_parquet(path / f"{part}.parquet")


def write_polars(_: Any, path: Path, rows: list[Row]) -> None:
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)


def write_duckdb(_: Any, path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    with duckdb.connect() as connection:
        connection.register("rows", table)
        connection.sql(f"COPY rows TO '{path}' (FORMAT parquet)")


def write_spark(spark: Any, path: Path, rows: list[Row]) -> None:
    spark.createDataFrame(pa.Table.from_pylist(rows)).repartition(3).write.parquet(f"file:{path}")


def write_delta(_: Any, path: Path, rows: list[Row]) -> None:
    from deltalake import write_deltalake

    table = pa.Table.from_pylist(rows)
    write_deltalake(str(path), table)
    write_deltalake(str(path), table, mode="overwrite")  # the files of the first version stay in the folder


def write_iceberg(_: Any, path: Path, rows: list[Row]) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    table = pa.Table.from_pylist(rows)
    warehouse = path.parent.parent / f"{path.name}-warehouse"
    warehouse.mkdir()
    catalog = SqlCatalog("test", uri=f"sqlite:///{warehouse}/catalog.db", warehouse=f"file://{warehouse}")
    catalog.create_namespace("db")
    written = catalog.create_table("db.rows", schema=table.schema, location=f"file://{path}")
    written.append(table[:3])
    written.append(table[3:])


def write_csv(_: Any, path: Path, rows: list[Row]) -> None:
    texts = [{k: "|".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in as_text(rows)]
    pd.DataFrame(texts).to_csv(path)  # with its column of numbers that has no name


def write_tsv_by_days(_: Any, path: Path, rows: list[Row]) -> None:
    for row in as_text(rows):
        texts = ["|".join(map(str, v)) if isinstance(v, list) else "" if v is None else str(v) for v in row.values()]
        folder = path / f"dt={row['timestamp'][:10]}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(list(folder.iterdir()))}.tsv.gz"
        (folder / name).write_bytes(gzip.compress(("\t".join(f'"{text}"' for text in texts) + "\r\n").encode("utf-16")))


def write_json(_: Any, path: Path, rows: list[Row]) -> None:
    lines = [
        {"event": {k: v for k, v in row.items() if k not in MANY}} | {k: row.get(k) for k in MANY}
        for row in as_text(rows)
    ]
    path.write_bytes(pa.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), "zstd", asbytes=True))


def write_plain(_: Any, path: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


FORMATS: dict[str, tuple[Write, str, tuple[str, ...]]] = {
    "pandas": (write_pandas, "", ()),
    "polars": (write_polars, "", ()),
    "duckdb": (write_duckdb, "", ()),
    "spark": (write_spark, "", ()),
    "delta": (write_delta, "", ()),
    "iceberg": (write_iceberg, "", ()),
    "csv": (write_csv, "", ("format=csv",)),
    "tsv by days": (write_tsv_by_days, "", ("format=csv", "delimiter=tab", "encoding=utf-16", "header=[{columns}]")),
    "json": (write_json, ".zst", ("format=jsonl",)),
}  # fmt: skip


def dataset_of(
    spark: Any, root: Path, settings: Settings, write: Write, end: str = "", given: tuple[str, ...] = ()
) -> Manifest:
    (root / "raw").mkdir(parents=True)
    overrides = [*EVENTS, BOUNDARIES, "source.events.time_unit=iso"]
    for name, rows in (("impressions", IMPRESSIONS), ("actions", ACTIONS)):
        timed = with_times(rows)
        write(spark, root / "raw" / f"{name}{end}", timed)
        overrides += [f"source.events.{name}.{one.format(columns=','.join(timed[0]))}" for one in given]
        overrides += [f"source.events.{name}.path={name}{end}"]
    if write is write_json:  # plain columns are fields of an object
        for name, columns in (
            ("impressions", ("timestamp", "user", "item", "id", "context")),
            ("actions", ("timestamp", "user", "item", "action")),
        ):
            for column in columns:
                found = {"user": "user_id", "item": "item_id", "id": "impression_id", "context": "page_view_id"}.get(
                    column, column
                )
                path = f"event.{found}"
                overrides.append(
                    f"source.events.{name}.{column}={path if column in ('timestamp', 'action') else f'[{path}]'}"
                )
        overrides += [f"features.fields.{field}.raw_id=event.{column}" for field, column in (("user_id", "user_id"), ("user_city", "city"), ("item_id", "item_id"), ("item_category", "item_category"))]  # fmt: skip
    return preprocess(settings(root / "raw", root / "out", *overrides))


@pytest.fixture(scope="module")
def wanted(spark: Any, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings) -> Manifest:
    """The dataset of plain Parquet, which Spark's own reader reads."""
    return dataset_of(spark, tmp_path_factory.mktemp("plain"), preprocess_settings, write_plain)


@pytest.mark.parametrize("name", FORMATS)
def test_a_log_in_any_format_gives_the_same_files(
    spark: Any, tmp_path: Path, preprocess_settings: Settings, wanted: Manifest, name: str
) -> None:
    write, end, given = FORMATS[name]
    manifest = dataset_of(spark, tmp_path, preprocess_settings, write, end, given)
    assert wanted.totals["train"]["impressions"] == 4
    assert manifest.files == wanted.files
    assert [field.vocabulary_xxh3 for field in manifest.fields] == [field.vocabulary_xxh3 for field in wanted.fields]
    assert manifest.totals == wanted.totals
