"""Find the tables of an event log below source.path, and check their columns before Spark starts."""

from dataclasses import replace
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.chunks.sources import SourceFile
from pipeline.config.events import EventsSettings
from pipeline.config.tables import PARQUET, TableSettings
from pipeline.errors import InputError
from pipeline.events.check_columns import check_actions, check_impressions
from pipeline.events.table_columns import find_columns
from pipeline.events.table_files import COMPRESSIONS, Part, find_parts, find_root
from pipeline.events.tables import CORRUPT, FILE, EventLog, Table
from pipeline.features.fields import Catalogue


def find_log(path: str, settings: EventsSettings, fields: Catalogue, needs_labels: bool = True) -> EventLog:
    """Find the tables below `path`, a directory or an address; of a log that `needs_labels` not, without its actions.

    Raises InputError for a missing file or column, a column of the wrong type, or files whose columns do not agree.
    """
    expected = (
        f"{settings.impressions.path} and {settings.actions.path} (source.events.impressions.path, "
        "source.events.actions.path)"
    )
    root = find_root(path, expected)

    def find(name: str, table: TableSettings, first_ordinal: int) -> Table:
        key = f"source.events.{name}"
        parts = find_parts(root, f"{key}.path={table.path}", table.path).parts
        files = tuple(_source_of(part, name, first_ordinal + number) for number, part in enumerate(parts))
        return _describe_table(name, table, parts, files)

    impressions = find("impressions", settings.impressions, 0)
    actions = Table("actions", settings.actions, (), {})
    if needs_labels:
        actions = find("actions", settings.actions, len(impressions.files))
    if [file.path for file in actions.files] == [file.path for file in impressions.files]:
        actions = replace(actions, files=impressions.files)  # one table with all events
    log = EventLog(impressions, actions, ())
    for number, join in enumerate(settings.joins):
        log = EventLog(impressions, actions, (*log.joins, find(f"joins[{number}]", join, len(log.files))))
    if needs_labels:
        check_actions(actions, settings)
    check_impressions(log, settings, fields)
    return log


def _source_of(part: Part, name: str, ordinal: int) -> SourceFile:
    compressed = PurePosixPath(part.name).suffix in COMPRESSIONS
    return SourceFile(ordinal, part.name, part.entry.address, part.entry.bytes, name, "", compressed, part.entry.stamp)


def _describe_table(name: str, table: TableSettings, parts: tuple[Part, ...], files: tuple[SourceFile, ...]) -> Table:
    found = find_columns(f"source.events.{name}", files, table)
    # A column in the files themselves says the same in every row of its folder, or more.
    partitions = tuple({key: text for key, text in part.partition.items() if key not in found.types} for part in parts)
    columns = dict(found.types) | dict.fromkeys(partitions[0], pa.string())
    for column in (CORRUPT, FILE):
        if column in columns:
            raise InputError(
                f"{name} has a column {column!r}, which is a name that reading adds to its columns; rename it."
            )
    by_spark = table.format == PARQUET and found.by_spark and not partitions[0]
    return Table(
        name, table, files, columns, found.of_file, partitions if partitions[0] else (), found.lacking, found.clashes,
        by_spark,
    )  # fmt: skip
