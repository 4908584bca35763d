"""What the rows of an event log are: impressions and actions, with their users, items, times, features and defects.

read.read() ─joins.joined()─▶ columns as they are ─impressions_of() / actions_of()─▶ the columns listed there
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.config.events import CLICK, MS_PER_S, EventsSettings
from pipeline.events.joins import chosen_rows, joined
from pipeline.events.read import TUPLE, Texts, backquoted, features_of, raw_id, read
from pipeline.events.tables import (
    CORRUPT,
    FILE,
    GOOD_STATUS,
    IMMATURE,
    OUTSIDE_SPLIT,
    EventLog,
    Table,
    is_text,
    needed_action_columns,
)
from pipeline.features.fields import Catalogue

#: A click flag, in lower case: as integers, floats, decimals, bools and their texts have it (pandas writes True and 1.0).
_CLICKED, _NOT_CLICKED = r"^(1(\.0*)?|true)\z", r"^(0(\.0*)?|false)\z"


@dataclass(frozen=True)
class Periods:
    """The times of the splits, and the last time at which an impression's labels are known."""

    boundaries_ms: tuple[int, int, int, int]
    mature_until_ms: int  # inclusive

    def split(self, at: Column) -> Column:
        """Return the position in manifest.SPLITS; null outside all."""
        t0, t1, t2, t3 = self.boundaries_ms
        return F.when(at < t0, None).when(at < t1, 0).when(at < t2, 1).when(at < t3, 2).cast("int")


def impressions_of(
    spark: SparkSession, log: EventLog, settings: EventsSettings, fields: Catalogue, periods: Periods
) -> DataFrame:
    """Read one row per impression of the files, with the columns:

    status         good, outside_split, immature, or the first reason that applies, of a row that is rejected
    split          0 1 2, null where outside
    user, item     what actions are matched by, as text (user null where malformed)
    at             milliseconds since 1970 UTC
    impression_id, context_key    64 bits
    clicked        the log's own click flag, or false
    f0 f1 …        of each field in catalogue order: the id, the ids or the number
    w0 w1 …        of each weighted field: its weights
    line, file     the row as JSON where it is rejected;  the address of its file
    """
    frame = joined(spark, log, settings, fields)
    entry, texts = settings.impressions, Texts(frame, settings)
    at = texts.milliseconds(entry.timestamp, entry)
    user, item = texts.tuple_of(entry.user), texts.tuple_of(entry.item)
    flag = F.lower(texts.of(entry.click)) if entry.click else F.lit("0")
    is_clicked = F.coalesce(flag.rlike(_CLICKED), F.lit(False))
    if entry.context:
        context = texts.tuple_of(entry.context)
    else:
        window = settings.context_window_s * MS_PER_S
        context = F.concat(user, F.lit(TUPLE), (at - F.pmod(at, F.lit(window))).cast("string"))
    own_id = texts.tuple_of(entry.id) if entry.id else F.concat_ws(TUPLE, user, item, context, at.cast("string"))
    columns, bad_features = features_of(fields.fields, texts)
    split = periods.split(at)
    broken = F.col(CORRUPT).isNotNull() | at.isNull() | (at < 0) | user.isNull() | item.isNull() | own_id.isNull()
    status = (
        F.when(broken, "malformed_line")
        .when(~(is_clicked | F.coalesce(flag.rlike(_NOT_CLICKED), F.lit(False))), "bad_label")
        .when(context.isNull(), "bad_context_key")
        .when(reduce(Column.__or__, bad_features, F.lit(False)), "bad_feature")
        .when(split.isNull(), OUTSIDE_SPLIT)
        .when(at > periods.mature_until_ms, IMMATURE)
        .otherwise(GOOD_STATUS)
    )  # fmt: skip
    raw = F.to_json(F.struct(*(F.col(backquoted(name)) for name in frame.columns if name not in (CORRUPT, FILE))))
    slim = frame.select(
        status.alias("status"), split.alias("split"), F.when(~broken, user).alias("user"), item.alias("item"),
        at.alias("at"), raw_id(own_id).alias("impression_id"), raw_id(context).alias("context_key"),
        is_clicked.alias("clicked"), *columns,
        F.coalesce(F.col(CORRUPT), raw).alias("line"), F.col(FILE).alias("file"),
    )  # fmt: skip
    is_rejected = ~F.col("status").isin(GOOD_STATUS, OUTSIDE_SPLIT, IMMATURE)
    return slim.withColumn("line", F.when(is_rejected, F.col("line")))


def texts_of(
    spark: SparkSession, log: EventLog, settings: EventsSettings, fields: Catalogue
) -> tuple[DataFrame, list[int]]:
    """Read the texts of the fields that have a vocabulary and text ids; return also the numbers of these fields.

    One row per impression of the files: t<number>, the text or the texts of the field. There may be no such field.
    """
    columns: dict[str, pa.DataType] = {}
    for table in (log.impressions, *log.joins):
        columns |= table.columns
    chosen = {n: entry for n, entry in enumerate(fields.fields) if entry.is_counted and is_text(columns[entry.raw_id])}
    frame = joined(spark, log, settings, fields)
    texts = Texts(frame, settings)
    found = [
        (texts.of(entry.raw_id) if entry.arity == "one" else texts.list_of(entry.raw_id)).alias(f"t{number}")
        for number, entry in chosen.items()
    ]
    return frame.select(*found), list(chosen)


def actions_of(spark: SparkSession, table: Table, settings: EventsSettings, kinds: Sequence[str]) -> DataFrame:
    """Read one row per action of the files: status (good, malformed, other), user, item, at, kind, named_id.

    `kind` is the setting's name of the action, null for one that makes no label (then the status is other).
    `named_id` is the impression that the action names, or null.
    """
    frame = chosen_rows(read(spark, table, needed_action_columns(settings)), settings.actions.where)
    entry, texts = settings.actions, Texts(frame, settings)
    wanted = [kind for kind in kinds if not (kind == CLICK and settings.impressions.click)]
    meaning = {name: kind for kind in wanted for name in settings.names[kind]}
    name = texts.of(entry.action)
    # A map lookup would be slower: Spark builds the map for each row.
    kind = reduce(
        lambda found, pair: F.when(name == pair[0], pair[1]).otherwise(found), meaning.items(), F.lit(None)
    ).cast("string")
    at, user, item = texts.milliseconds(entry.timestamp, entry), texts.tuple_of(entry.user), texts.tuple_of(entry.item)
    named = raw_id(texts.tuple_of(entry.impression)) if entry.impression else F.lit(None).cast("long")
    broken = F.col(CORRUPT).isNotNull() | at.isNull() | (at < 0) | user.isNull() | name.isNull()
    # The item may be missing where the action has none, such as a visit to the front page.
    status = (
        F.when(broken, "malformed").when(kind.isNull(), "other").when(item.isNull(), "malformed").otherwise(GOOD_STATUS)
    )
    return frame.select(
        status.alias("status"), user.alias("user"), item.alias("item"), at.alias("at"), kind.alias("kind"),
        named.alias("named_id"),
    )  # fmt: skip
