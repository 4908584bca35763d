"""Tables of Spark's catalogs: whatever the session resolves, as Hive, Iceberg, Delta, JDBC or a view, at one version.

A table with versions is read at the one that the settings name, or at the newest, whose number goes to the manifest.
A table without versions is pinned by its content: the number of its rows and the sum of their hashes.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.errors import InputError
from pipeline.events.read import backquoted, select_columns
from pipeline.events.tables import Table
from pipeline.spark.exceptions import first_line

#: Names of a catalog, a schema and a table, each perhaps in backquotes: nothing else comes into a query.
_TABLE_NAME = re.compile(r"(`[^`]+`|[^\W\d]\w*)(\.(`[^`]+`|\w+)){0,3}")
_CONTENT = re.compile(r"[0-9]+ rows, [0-9a-f]{32}")
_VERSION = re.compile(r"[0-9]{1,19}")


def open_catalog_table(spark: SparkSession, key: str, name: str, as_of: str | None) -> DataFrame:
    """Return the table at the version `as_of`, a number; a table without versions as it is.

    `key` is the table's setting with its value. Raises InputError for a name that Spark does not resolve.
    """
    if not _TABLE_NAME.fullmatch(name):
        raise InputError(
            f"{key} is no name of a table; write it as catalog.schema.table, with `backquotes` around odd names."
        )
    if as_of is not None and not _VERSION.fullmatch(as_of) and not _CONTENT.fullmatch(as_of):
        raise InputError(f"{key}: as_of={as_of} is no version or snapshot of a table; give its number.")
    query = f"SELECT * FROM {name}"
    if as_of is not None and _VERSION.fullmatch(as_of):
        query += f" VERSION AS OF {as_of}"
    try:
        with _without_log():
            return spark.sql(query)
    except PySparkException as error:
        raise InputError(
            f"{key} cannot be read by Spark ({first_line(error)}); correct the name or as_of, or give the catalog and the jars "
            "of its format in spark.conf."
        ) from error


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep PySpark from writing an error to stderr, as JSON, before it is raised."""
    logger = logging.getLogger("SQLQueryContextLogger")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def newest_version(spark: SparkSession, name: str) -> str | None:
    """Return the newest version of a Delta table or snapshot of an Iceberg table; None of any other."""
    described = spark.sql(f"DESCRIBE TABLE EXTENDED {name}").collect()
    provider = next((row["data_type"] for row in described if row["col_name"] == "Provider"), "")
    query, column = {
        "iceberg": (f"SELECT snapshot_id FROM {name}.refs WHERE name = 'main'", "snapshot_id"),
        "delta": (f"DESCRIBE HISTORY {name} LIMIT 1", "version"),
    }.get(provider.lower(), ("", ""))
    rows = spark.sql(query).collect() if query else []
    return str(rows[0][column]) if rows else None


def content_of(frame: DataFrame, columns: Sequence[str]) -> str:
    """Hash the rows of some columns, whatever their order: it changes when a value does."""
    chosen = [F.col(backquoted(name)) for name in columns]
    chosen += [column.isNull() for column in chosen]  # a hash passes over null
    first, second = F.xxhash64(*chosen), F.xxhash64(F.lit(1), *chosen)
    sums = [F.sum(column.cast("decimal(38,0)")) for column in (first, second)]
    rows, *found = frame.agg(F.count("*"), *sums).collect()[0]
    parts = [int(value or 0) % (1 << 64) for value in found]
    return f"{rows} rows, {parts[0]:016x}{parts[1]:016x}"


def estimated_bytes(frame: DataFrame) -> int:
    """Estimate the size of a table as Spark's planner does; 0 where it does not know."""
    size = int(str(frame._jdf.queryExecution().optimizedPlan().stats().sizeInBytes()))
    return size if size < 1 << 50 else 0


def pin_content(spark: SparkSession, table: Table, columns: Sequence[str]) -> Table:
    """Pin a table without versions by its content. Raises InputError if the settings name another content."""
    as_of = table.settings.as_of
    if as_of is not None and _VERSION.fullmatch(as_of):
        return table
    content = content_of(_frame_of(spark, table, columns), columns)
    if as_of not in (None, content):
        raise InputError(
            f"{table.key}.table={table.settings.table} holds {content}, not {as_of} as as_of says; its rows have changed since, "
            "and a table without versions has no earlier state."
        )
    return replace(table, settings=replace(table.settings, as_of=content))


def copy_catalog_table(spark: SparkSession, table: Table, columns: Sequence[str], path: str) -> None:
    """Write the rows of a table as Parquet, because the next stages read them several times.

    Raises InputError if they are not those that the table was pinned at.
    """
    _frame_of(spark, table, columns).write.parquet(path)
    as_of = str(table.settings.as_of)
    if not _VERSION.fullmatch(as_of) and content_of(spark.read.parquet(path), columns) != as_of:
        raise InputError(
            f"{table.key}.table={table.settings.table} has changed since the job began, so nothing was written; run again once "
            "nothing writes to it any more."
        )


def _frame_of(spark: SparkSession, table: Table, columns: Sequence[str]) -> DataFrame:
    name = str(table.settings.table)
    frame = open_catalog_table(spark, f"{table.key}.table={name}", name, table.settings.as_of)
    return select_columns(frame, columns, F.lit(name))
