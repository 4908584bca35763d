"""What the rows of an event log are: impressions and actions, with their users, items, times, features and defects.

read.read() ─joins.joined()─▶ columns as they are ─impressions_of() / actions_of()─▶ the columns listed there
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.config.events import MS_PER_S, EventsSettings
from pipeline.config.preprocess import KEEP
from pipeline.events.joins import chosen_rows, joined, matched_column
from pipeline.events.own_labels import LOST, OwnLabels
from pipeline.events.read import TUPLE, Texts, backquoted, cleaned, features_of, raw_id, read
from pipeline.events.tables import (
    CORRUPT,
    FILE,
    GOOD_STATUS,
    IMMATURE,
    LEFT_OUT,
    OUTSIDE_SPLIT,
    EventLog,
    Table,
    is_text,
    needed_action_columns,
)
from pipeline.features.fields import Catalogue

_CHARACTERS_KEPT = 80  # of a value that is an example of a defect


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
    spark: SparkSession,
    log: EventLog,
    settings: EventsSettings,
    fields: Catalogue,
    periods: Periods,
    missing_item: str = KEEP,
) -> DataFrame:
    """Read one row per impression of the files, with the columns:

    status         good, outside_split, immature, or the first reason that applies, of a row that is rejected
    split          0 1 2, null where outside
    user, item     what actions are matched by, as text (user null where malformed, item where a column of it is missing)
    at             milliseconds since 1970 UTC
    impression_id, context_key    64 bits
    clicked        whether a column of the row says that it was clicked
    f0 f1 …        of each field in catalogue order: the id, the ids or the number
    w0 w1 …        of each weighted field: its weights
    line, file     the row as JSON where it is rejected;  the address of its file
    defect         where it is rejected: the column that is the reason, and its value
    page           the context as text, where a column has it
    click_at daction_at conversion_at    the labels that columns of the row have; lost_… says why one does not count
    matched0 …     of each joined table: whether it has a row for the impression
    """
    frame = joined(spark, log, settings, fields)
    entry, texts = settings.impressions, Texts(frame, settings)
    at = texts.milliseconds(entry.timestamp, entry)
    user, item = texts.tuple_of(entry.user), texts.tuple_of(entry.item)
    own_labels = OwnLabels(settings, texts, at)
    if entry.context:
        context = texts.tuple_of(entry.context)
    else:
        window = settings.context_window_s * MS_PER_S
        context = F.concat(user, F.lit(TUPLE), (at - F.pmod(at, F.lit(window))).cast("string"))
    columns, bad_features = features_of(fields.fields, texts)
    if entry.id:
        own_id = texts.tuple_of(entry.id)
    else:  # two items that are not known are two items, unless the rows are the same
        what = F.xxhash64(*(F.col(backquoted(name)) for name in frame.columns if name != FILE)).cast("string")
        own_id = F.concat_ws(TUPLE, user, F.coalesce(item, what), context, at.cast("string"))
    split = periods.split(at)
    # An item of several columns, or of a joined table, may be unknown: no action can be matched with it then.
    needs_item = len(entry.item) == 1 and entry.item[0] in log.impressions.columns
    is_corrupt, is_missing = F.col(CORRUPT).isNotNull(), item.isNull()
    broken = is_corrupt | at.isNull() | user.isNull() | own_id.isNull() | (is_missing if needs_item else F.lit(False))
    is_bad_feature = reduce(Column.__or__, (is_bad for _, is_bad in bad_features), F.lit(False))
    status = (
        F.when(broken, "malformed_line")
        .when(own_labels.is_bad, "bad_label")
        .when(context.isNull(), "bad_context_key")
        .when(is_bad_feature, "bad_feature")
        .when(is_missing & F.lit(missing_item != KEEP), "missing_item")
        .when(split.isNull(), OUTSIDE_SPLIT)
        .when(at > periods.mature_until_ms, IMMATURE)
        .otherwise(GOOD_STATUS)
    )  # fmt: skip
    raw = F.to_json(F.struct(*(F.col(backquoted(name)) for name in frame.columns if _is_of_log(name))))
    nothing = [(name, texts.of(name).isNull()) for name in (*entry.user, *entry.id)]
    nothing += [(name, texts.of(name).isNull()) for name in entry.item] if needs_item else []
    reasons = [
        (broken, [(entry.timestamp, at.isNull()), *nothing]),
        (own_labels.is_bad, own_labels.defects),
        (context.isNull(), [(name, texts.of(name).isNull()) for name in entry.context]),
        (is_bad_feature, bad_features),
        (is_missing, [(name, texts.of(name).isNull()) for name in entry.item]),
    ]
    slim = frame.select(
        status.alias("status"), split.alias("split"), F.when(~broken, user).alias("user"), item.alias("item"),
        at.alias("at"), raw_id(own_id).alias("impression_id"), raw_id(context).alias("context_key"),
        own_labels.is_clicked.alias("clicked"), *columns,
        F.coalesce(F.col(CORRUPT), raw).alias("line"), F.col(FILE).alias("file"),
        _defect(is_corrupt, reasons).alias("defect"),
        (context if entry.context else F.lit(None).cast("string")).alias("page"), *own_labels.columns,
        *(F.col(matched_column(number)) for number in range(len(settings.joins))),
    )  # fmt: skip
    is_rejected = ~F.col("status").isin(GOOD_STATUS, *LEFT_OUT)
    return slim.withColumns({name: F.when(is_rejected, F.col(name)) for name in ("line", "defect")})


def attributed_columns(number_of_joins: int) -> tuple[str, ...]:
    """Name the columns of impressions_of that are no part of a quarantined duplicate's line."""
    told = ("defect", "page", "click_at", "daction_at", "conversion_at", *LOST)
    return (*told, *(matched_column(number) for number in range(number_of_joins)))


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
    """Read one row per action of the files: status (good, malformed, other), user, item, at, kind, named_id, name.

    `kind` is the setting's name of the action, null for one that makes no label (then the status is other).
    `named_id` is the impression that the action names, or null. `name` is what the log calls the action.
    """
    entry = settings.actions
    frame = cleaned(read(spark, table, needed_action_columns(settings)), entry.clean)
    frame = chosen_rows(frame, entry.where)
    texts = Texts(frame, settings)
    meaning = {name: kind for kind in kinds for name in settings.names[kind]}
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
        named.alias("named_id"), name.alias("name"),
    )  # fmt: skip


def _is_of_log(column: str) -> bool:
    return column not in (CORRUPT, FILE) and not column.startswith(matched_column(""))


def _defect(is_corrupt: Column, reasons: Sequence[tuple[Column, Sequence[tuple[str, Column]]]]) -> Column:
    """Return (column, value) of the first defect: of the first reason that applies, the first column that is bad."""

    def of_column(name: str) -> Column:
        value = F.col(backquoted(name)).cast("string")
        return F.struct(F.lit(name).alias("column"), F.substring(value, 1, _CHARACTERS_KEPT).alias("value"))

    found = F.when(
        is_corrupt,
        F.struct(
            F.lit("").alias("column"),
            F.make_valid_utf8(F.substring(F.col(CORRUPT), 1, _CHARACTERS_KEPT)).alias("value"),
        ),
    )
    for applies, defects in reasons:
        for name, is_bad in defects:
            found = found.when(applies & is_bad, of_column(name))
    return found
