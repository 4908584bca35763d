"""The impressions with the columns of the joined tables beside their own."""

from collections.abc import Mapping, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.config.events import EventsSettings
from pipeline.errors import InputError
from pipeline.events.read import backquoted, read
from pipeline.events.tables import CORRUPT, EventLog, join_key, needed_columns
from pipeline.features.fields import Catalogue


def chosen_rows(frame: DataFrame, where: Mapping[str, Sequence[str]]) -> DataFrame:
    """Select the rows with one of the texts in each column; a row that cannot be parsed may be one of them."""
    for column, texts in where.items():
        frame = frame.where(F.col(CORRUPT).isNotNull() | F.col(backquoted(column)).cast("string").isin(*texts))
    return frame


def joined(spark: SparkSession, log: EventLog, settings: EventsSettings, fields: Catalogue) -> DataFrame:
    """Join the tables to the impressions; one row per impression. Raises InputError for a key that is there twice."""
    needed = needed_columns(settings, fields)
    frame = chosen_rows(read(spark, log.impressions, needed), settings.impressions.where)
    for number, (join, table) in enumerate(zip(settings.joins, log.joins, strict=True)):
        keys = {f"_key{place}": F.col(backquoted(name)).cast("string") for place, name in enumerate(join_key(join))}
        wanted = {name: many for name, many in needed.items() if name not in frame.columns}
        joined = read(spark, table, wanted | dict.fromkeys(join_key(join), "one")).where(F.col(CORRUPT).isNull())
        joined = joined.select(
            *(column.alias(name) for name, column in keys.items()),
            *(F.col(backquoted(name)) for name in wanted if name in table.columns),
        )
        twice = joined.groupBy(*keys).count().where("count > 1").orderBy(*keys).limit(1).collect()
        if twice:
            values = ", ".join(str(twice[0][key]) for key in keys)
            raise InputError(
                f"source.events.joins[{number}].path={join.path} has the key {values} in {twice[0]['count']} rows; "
                "a joined table needs one row per key, or impressions would be doubled."
            )
        matches = [F.col(backquoted(by)).cast("string") == F.col(key) for by, key in zip(join.by, keys, strict=True)]
        frame = frame.join(joined, reduce(Column.__and__, matches), how="left").drop(*keys)
    return frame
