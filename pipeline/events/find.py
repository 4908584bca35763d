"""Find the tables of an event log below source.path, and check their columns before Spark starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.chunks.sources import SourceFile
from pipeline.config.events import EventsSettings
from pipeline.config.tables import DELTA, ICEBERG, PARQUET, TableSettings
from pipeline.errors import InputError
from pipeline.events.check_columns import check_actions, check_impressions
from pipeline.events.lake_tables import LakeTable, open_lake_table
from pipeline.events.parquet_rows import columns_of_schema
from pipeline.events.table_columns import find_columns
from pipeline.events.table_files import COMPRESSIONS, Part, find_parts, find_root
from pipeline.events.tables import CORRUPT, FILE, EventLog, Table
from pipeline.features.fields import Catalogue

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def find_log(
    path: str,
    settings: EventsSettings,
    fields: Catalogue,
    with_actions: bool = True,
    start_session: Callable[[], "SparkSession"] | None = None,
) -> EventLog:
    """Find the tables below `path`, a directory or an address; without actions, that table has no files.

    Spark is started for tables of its catalogs alone. Each of them gets the version at which it is read.

    Raises InputError for a missing file or column, a column of the wrong type, or files whose columns do not agree.
    """
    expected = (
        f"{settings.impressions.path} and {settings.actions.path} (source.events.impressions.path, "
        "source.events.actions.path)"
    )
    tables = [settings.impressions, *([settings.actions] if with_actions else []), *settings.joins]
    root = find_root(path, expected) if any(table.table is None for table in tables) else None
    spark = start_session() if start_session and any(table.table is not None for table in tables) else None

    def find(name: str, table: TableSettings, first_ordinal: int) -> Table:
        if table.table is not None:
            assert spark is not None
            return _describe_catalog(spark, name, table)
        assert root is not None
        key = f"source.events.{name}.path={table.path}"
        found = find_parts(root, key, table.path)
        form = found.lake or table.format
        if (table.as_of is not None or table.format in (DELTA, ICEBERG)) and form != found.lake:
            raise InputError(
                f"{key} is a folder of files, not the table of Delta or Iceberg that format={table.format} and "
                f"as_of={table.as_of} say; correct one of them."
            )
        if found.lake:
            lake = open_lake_table(found.lake, found.folder, key, table.as_of, root.address)
            return _describe_lake(name, replace(table, format=found.lake, as_of=lake.version), lake, first_ordinal)
        return _describe_table(name, table, found.parts, _sources_of(found.parts, name, first_ordinal))

    impressions = find("impressions", settings.impressions, 0)
    actions = Table("actions", settings.actions, (), {})
    if with_actions:
        actions = find("actions", settings.actions, len(impressions.files))
    if actions.files and [file.path for file in actions.files] == [file.path for file in impressions.files]:
        actions = replace(actions, files=impressions.files)  # one table with all events
    log = EventLog(impressions, actions, ())
    for number, join in enumerate(settings.joins):
        log = EventLog(impressions, actions, (*log.joins, find(f"joins[{number}]", join, len(log.files))))
    if with_actions:
        check_actions(actions, settings)
    check_impressions(log, settings, fields)
    return _pin_contents(spark, log, settings, fields) if spark else log


def _sources_of(parts: Sequence[Part], name: str, first_ordinal: int) -> tuple[SourceFile, ...]:
    return tuple(
        SourceFile(
            first_ordinal + number, part.name, part.entry.address, part.entry.bytes, name, "",
            PurePosixPath(part.name).suffix in COMPRESSIONS, part.entry.stamp,
        )
        for number, part in enumerate(parts)
    )  # fmt: skip


def _describe_lake(name: str, table: TableSettings, lake: LakeTable, first_ordinal: int) -> Table:
    columns = columns_of_schema(lake.schema)
    _check_own_names(name, columns)
    partitions = tuple(part.partition for part in lake.parts)
    return Table(
        name, table, _sources_of(lake.parts, name, first_ordinal), columns,
        partitions=partitions if partitions[0] else (),
    )  # fmt: skip


def _describe_catalog(spark: "SparkSession", name: str, table: TableSettings) -> Table:
    from pipeline.events.catalog_tables import estimated_bytes, newest_version, open_catalog_table

    key = f"source.events.{name}.table={table.table}"
    assert table.table is not None
    frame = open_catalog_table(spark, key, table.table, table.as_of)
    if table.as_of is None and (version := newest_version(spark, table.table)):
        table = replace(table, as_of=version)
        frame = open_catalog_table(spark, key, str(table.table), version)
    columns = columns_of_schema(frame.limit(0).toArrow().schema)
    _check_own_names(name, columns)
    return Table(name, table, (), columns, estimated_bytes=estimated_bytes(frame))


def _pin_contents(spark: "SparkSession", log: EventLog, settings: EventsSettings, fields: Catalogue) -> EventLog:
    """Pin each table of a catalog that has no versions by the content of its needed columns."""
    from pipeline.events.catalog_tables import pin_content

    pinned = {
        table.name: pin_content(spark, table, list(needed)) if table.settings.table is not None else table
        for table, needed in log.with_needed(settings, fields)
    }
    return EventLog(pinned["impressions"], pinned["actions"], tuple(pinned[table.name] for table in log.joins))


def _check_own_names(name: str, columns: Mapping[str, pa.DataType]) -> None:
    for column in (CORRUPT, FILE):
        if column in columns:
            raise InputError(
                f"{name} has a column {column!r}, which is a name that reading adds to its columns; rename it."
            )


def _describe_table(name: str, table: TableSettings, parts: tuple[Part, ...], files: tuple[SourceFile, ...]) -> Table:
    found = find_columns(f"source.events.{name}", files, table)
    # A column in the files themselves says the same in every row of its folder, or more.
    partitions = tuple({key: text for key, text in part.partition.items() if key not in found.types} for part in parts)
    columns = dict(found.types) | dict.fromkeys(partitions[0], pa.string())
    _check_own_names(name, columns)
    by_spark = table.format == PARQUET and found.by_spark and not partitions[0]
    return Table(
        name, table, files, columns, found.of_file, partitions if partitions[0] else (), found.lacking, found.clashes,
        by_spark,
    )  # fmt: skip
