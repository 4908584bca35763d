"""The impressions with the columns of the joined tables beside their own.

A joined table has one row a key, or a history of rows: with `asof`, an impression gets the row that held at its time.

    history ∪ impressions of a key, in order of time ─▶ the latest row of the history at or before the impression

This is a running "last value" over one sort, as attribution is.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from pipeline.config.events import EventsSettings, JoinSettings
from pipeline.errors import InputError
from pipeline.events.read import Texts, backquoted, cleaned, read
from pipeline.events.tables import CORRUPT, ONE, EventLog, Table, join_key, needed_columns, own_columns
from pipeline.features.fields import Catalogue

_AT, _SALT = "_at", "_spread"
_NUM_SPREAD = 1000  # groups of the impressions without a key, which would be one task's work otherwise


def matched_column(number: int | str) -> str:
    """Name the column that says whether the joined table has a row for the impression."""
    return f"matched{number}"


def chosen_rows(frame: DataFrame, where: Mapping[str, Sequence[str]]) -> DataFrame:
    """Select the rows with one of the texts in each column; a row that cannot be parsed may be one of them."""
    for column, texts in where.items():
        # coalesce keeps Spark from handing the filter to its CSV reader, which does not know yet what is corrupt.
        is_chosen = F.coalesce(F.col(backquoted(column)).cast("string").isin(*texts), F.lit(False))
        frame = frame.where(F.col(CORRUPT).isNotNull() | is_chosen)
    return frame


def joined(spark: SparkSession, log: EventLog, settings: EventsSettings, fields: Catalogue) -> DataFrame:
    """Join the tables to the impressions; one row per impression, and matched0 … whether it has a row of each table.

    Raises InputError for a key that has two rows which differ.
    """
    needed = needed_columns(settings, fields)
    entry = settings.impressions
    frame = chosen_rows(cleaned(read(spark, log.impressions, needed), entry.clean), entry.where)
    for number, (join, table) in enumerate(zip(settings.joins, log.joins, strict=True)):
        wanted = [name for name in needed if name in table.columns and name not in frame.columns]
        rows = _joined_rows(spark, table, join, settings, wanted)
        where = f"source.events.joins[{number}].path={join.path}"
        rows = _without_copies(rows, [name for name in rows.columns if name not in wanted], join, where)
        rows = rows.withColumn(matched_column(number), F.lit(True))
        columns = [*frame.columns, *wanted, matched_column(number)]
        keys = _numbered_keys([Texts(frame, settings).of(by) for by in join.by])
        frame = _join_history(frame, rows, keys, settings) if join.asof else _join_rows(frame, rows, keys)
        frame = frame.select(*(F.col(backquoted(name)) for name in columns))
        frame = frame.withColumn(matched_column(number), F.coalesce(matched_column(number), F.lit(False)))
    return frame


def _numbered_keys(columns: Sequence[Column]) -> dict[str, Column]:
    return {f"_key{place}": column for place, column in enumerate(columns)}


def _joined_rows(
    spark: SparkSession, table: Table, join: JoinSettings, settings: EventsSettings, wanted: Sequence[str]
) -> DataFrame:
    """Read the rows of a joined table that have a key, and with `asof` a time: _key0 …, _at, and the wanted columns."""
    needed = dict.fromkeys([*own_columns(join), *wanted], ONE)
    frame = cleaned(read(spark, table, needed).where(F.col(CORRUPT).isNull()), join.clean)
    texts = Texts(frame, settings)
    keys = _numbered_keys([texts.of(name) for name in join_key(join)])
    time = {_AT: texts.milliseconds(join.asof, join)} if join.asof else {}
    frame = frame.select(
        *(column.alias(name) for name, column in (keys | time).items()), *(F.col(backquoted(name)) for name in wanted)
    )
    return frame.where(reduce(Column.__and__, (F.col(name).isNotNull() for name in (*keys, *time))))


def _without_copies(rows: DataFrame, keys: Sequence[str], join: JoinSettings, where: str) -> DataFrame:
    """Return the rows, each once. Raises InputError for a key, or a key and a time, that has two rows which differ."""

    def repeated(frame: DataFrame) -> DataFrame:
        return frame.groupBy(*keys).count().where("count > 1").orderBy(*keys).limit(1)

    if not repeated(rows).collect():
        return rows
    rows = rows.distinct()
    if twice := repeated(rows).collect():
        values = ", ".join(str(twice[0][key]) for key in keys if key != _AT)
        is_key = [F.col(key) == twice[0][key] for key in keys]
        one, other = rows.where(reduce(Column.__and__, is_key)).drop(*keys).limit(2).collect()
        name = next(name for name in one.asDict() if one[name] != other[name])
        found = f"{where} has the key {values} in {twice[0]['count']} rows that differ ({name}: {one[name]!r}, {other[name]!r})"
        if join.asof:
            raise InputError(f"{found} and have one time in {join.asof}; a history needs one row per key and time.")
        raise InputError(
            f"{found}; a joined table needs one row per key, or impressions would be doubled. If it is a history, name the "
            "column of its times as asof."
        )
    return rows


def _join_rows(frame: DataFrame, rows: DataFrame, keys: Mapping[str, Column]) -> DataFrame:
    return frame.join(rows, reduce(Column.__and__, (column == F.col(key) for key, column in keys.items())), how="left")


def _join_history(frame: DataFrame, rows: DataFrame, keys: Mapping[str, Column], settings: EventsSettings) -> DataFrame:
    """Add the latest row of each key at or before the impression; one shuffle of the impressions and one sort."""
    entry = settings.impressions
    at = Texts(frame, settings).milliseconds(entry.timestamp, entry)
    has_key = reduce(Column.__and__, (column.isNotNull() for column in keys.values()))
    spread = F.pmod(F.xxhash64(*(F.col(backquoted(name)) for name in frame.columns)), F.lit(_NUM_SPREAD))
    shown = frame.select(
        *(column.alias(name) for name, column in keys.items()), at.alias(_AT), F.lit(True).alias("_is_shown"),
        F.when(has_key, F.lit(-1)).otherwise(spread).alias(_SALT),
        F.struct(*(F.col(backquoted(name)) for name in frame.columns)).alias("_own"),
    )  # fmt: skip
    payload = [name for name in rows.columns if name not in (*keys, _AT)]
    history = rows.select(
        *keys, _AT, F.lit(False).alias("_is_shown"), F.lit(-1).cast("long").alias(_SALT),
        F.struct(*(F.col(backquoted(name)) for name in payload)).alias("_held"),
    )  # fmt: skip
    in_time = Window.partitionBy(*keys, _SALT).orderBy(_AT, "_is_shown")
    until_now = in_time.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    events = shown.unionByName(history, allowMissingColumns=True)
    events = events.withColumn("_held", F.last("_held", ignorenulls=True).over(until_now)).where("_is_shown")
    # An impression without a time sorts before every row of the history.
    return events.select("_own.*", "_held.*")


def key_texts(spark: SparkSession, log: EventLog, settings: EventsSettings, number: int) -> tuple[DataFrame, DataFrame]:
    """Return the keys of the impressions and those of a joined table, as texts of one column."""
    join, entry = settings.joins[number], settings.impressions
    tables = (
        (log.impressions, join.by, entry.clean),
        (log.joins[number], join_key(join), join.clean),
    )
    frames = []
    for table, names, clean in tables:
        frame = cleaned(read(spark, table, dict.fromkeys(names, ONE)), clean)
        frames.append(frame.select(Texts(frame, settings).tuple_of(names).alias("key")))
    return frames[0], frames[1]
