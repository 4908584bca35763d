"""Read the tables of an event log as DataFrames of one shape, for any format and names: ids, times, features, defects.

    source files ─read()─▶ columns as they are ─impressions_of() / actions_of()─▶ the columns listed there

One rule makes the ids of every column. The text of a whole number from 0 to 2^63 - 1, without leading zeros, is that
number. Any other text becomes the lower 63 bits of its XXH64 with seed 42, which Spark calls xxhash64.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DateType,
    IntegralType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from pipeline.config.events import CLICK, CSV, MS_PER_S, PARQUET, EventsSettings
from pipeline.errors import InputError
from pipeline.events.tables import (
    CORRUPT,
    FILE,
    GOOD_STATUS,
    IMMATURE,
    OUTSIDE_SPLIT,
    EventLog,
    Table,
    is_text,
    join_key,
    needed_action_columns,
    needed_columns,
    weights_of,
)
from pipeline.features.fields import Catalogue, Field

#: A click flag, in lower case: as integers, floats, decimals, bools and their texts have it (pandas writes True and 1.0).
_CLICKED, _NOT_CLICKED = r"^(1(\.0*)?|true)\z", r"^(0(\.0*)?|false)\z"
_TUPLE = "\x1f"  # between the texts of several columns that are read as their tuple
_DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\z"
_YEAR_TEN_THOUSAND_MS = 253_402_300_800_000
_MS_PER_UNIT = {"s": "1000", "ms": "1", "us": "0.001"}


@dataclass(frozen=True)
class Periods:
    """The times of the splits, and the last time at which an impression's labels are known."""

    boundaries_ms: tuple[int, int, int, int]
    mature_until_ms: int  # inclusive

    def split(self, at: Column) -> Column:
        """Return the position in manifest.SPLITS; null outside all."""
        t0, t1, t2, t3 = self.boundaries_ms
        return F.when(at < t0, None).when(at < t1, 0).when(at < t2, 1).when(at < t3, 2).cast("int")


def read(spark: SparkSession, table: Table, needed: Mapping[str, str]) -> DataFrame:
    """Read the `needed` columns that the table has, CORRUPT (null if readable) and FILE; one row per row of the files."""
    if table.parsed:
        frame = spark.read.parquet(table.parsed)
    elif table.format == PARQUET:
        frame = spark.read.parquet(*table.addresses)
        frame = frame.withColumns({CORRUPT: F.lit(None).cast("string"), FILE: F.input_file_name()})
    else:
        assert table.format == CSV, "JSON lines are parsed before (json_lines)"
        schema = StructType([StructField(name, StringType()) for name in (*table.columns, CORRUPT)])
        frame = spark.read.csv(
            list(table.addresses), schema=schema, header=True, escape='"', columnNameOfCorruptRecord=CORRUPT,
            mode="PERMISSIVE",
        ).withColumn(FILE, F.input_file_name())  # fmt: skip
    return frame.select(*(F.col(_backquoted(name)) for name in table.columns if name in needed), CORRUPT, FILE)


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
    frame = _joined(spark, log, settings, fields)
    entry, texts = settings.impressions, _Texts(frame, settings)
    at = texts.milliseconds(entry.timestamp)
    user, item = texts.tuple_of(entry.user), texts.tuple_of(entry.item)
    flag = F.lower(texts.of(entry.click)) if entry.click else F.lit("0")
    is_clicked = F.coalesce(flag.rlike(_CLICKED), F.lit(False))
    if entry.context:
        context = texts.tuple_of(entry.context)
    else:
        window = settings.context_window_s * MS_PER_S
        context = F.concat(user, F.lit(_TUPLE), (at - F.pmod(at, F.lit(window))).cast("string"))
    own_id = texts.tuple_of(entry.id) if entry.id else F.concat_ws(_TUPLE, user, item, context, at.cast("string"))
    columns, bad_features = _features(fields.fields, texts)
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
    raw = F.to_json(F.struct(*(F.col(_backquoted(name)) for name in frame.columns if name not in (CORRUPT, FILE))))
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
    frame = _joined(spark, log, settings, fields)
    texts = _Texts(frame, settings)
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
    frame = read(spark, table, needed_action_columns(settings))
    entry, texts = settings.actions, _Texts(frame, settings)
    wanted = [kind for kind in kinds if not (kind == CLICK and settings.impressions.click)]
    meaning = {name: kind for kind in wanted for name in settings.names[kind]}
    name = texts.of(entry.action)
    # A map lookup would be slower: Spark builds the map for each row.
    kind = reduce(
        lambda found, pair: F.when(name == pair[0], pair[1]).otherwise(found), meaning.items(), F.lit(None)
    ).cast("string")
    at, user, item = texts.milliseconds(entry.timestamp), texts.tuple_of(entry.user), texts.tuple_of(entry.item)
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


def raw_id(text: Column) -> Column:
    """Return the int64 of an id given as text; null for null."""
    number = F.when(text.rlike(r"^(0|[1-9][0-9]{0,18})\z"), text.try_cast("long"))
    return F.when(text.isNotNull(), F.coalesce(number, F.xxhash64(text).bitwiseAND(F.lit((1 << 63) - 1))))


class _Texts:
    """The columns of a frame as text, null where `source.events.nulls` has the text."""

    def __init__(self, frame: DataFrame, settings: EventsSettings) -> None:
        self._types = {entry.name: entry.dataType for entry in frame.schema.fields}
        self._settings = settings

    def of(self, name: str) -> Column:
        """Return one column."""
        return self._without_nulls(F.col(_backquoted(name)).cast("string"))

    def tuple_of(self, names: Sequence[str]) -> Column:
        """Return several columns as one; null where one is."""
        texts = [self.of(name) for name in names]
        return reduce(lambda left, right: F.concat(left, F.lit(_TUPLE), right), texts)

    def id_of(self, name: str) -> Column:
        """Return one column as ids."""
        if isinstance(self._types[name], IntegralType):
            return self._id_of_number(F.col(_backquoted(name)))
        return raw_id(self.of(name))

    def ids_of(self, name: str) -> Column:
        """Return the ids of a multi-valued column; an empty list where there are none."""
        kind = self._types[name]
        if isinstance(kind, ArrayType) and isinstance(kind.elementType, IntegralType):
            return F.coalesce(F.transform(F.col(_backquoted(name)), self._id_of_number), F.array().cast("array<long>"))
        return F.transform(self.list_of(name), lambda text: raw_id(self._without_nulls(text)))

    def number_of(self, name: str) -> tuple[Column, Column]:
        """Return (one column as float32, whether it holds something else than a finite number); null is missing."""
        kind = self._types[name]
        text = self.of(name)
        is_number = text.rlike(_DECIMAL) if isinstance(kind, StringType) else F.lit(True)
        number = F.when(is_number & text.isNotNull(), F.col(_backquoted(name)).try_cast("float"))
        is_finite = number.isNotNull() & ~F.isnan(number) & (F.abs(number) != float("inf"))
        return number, text.isNotNull() & ~F.coalesce(is_finite, F.lit(False))

    def vector_of(self, name: str, width: int) -> tuple[Column, Column]:
        """Return (one column as lists of float32, whether a list has other than `width` finite numbers). [] is missing."""
        kind = self._types[name]
        if isinstance(kind, ArrayType) and not isinstance(kind.elementType, StringType):
            values = F.transform(F.col(_backquoted(name)), lambda value: value.try_cast("float"))
            values = F.coalesce(values, F.array().cast("array<float>"))
        else:
            values = F.transform(self.list_of(name), lambda text: F.when(text.rlike(_DECIMAL), text.try_cast("float")))
        is_gap = F.exists(values, lambda value: value.isNull() | F.isnan(value) | (F.abs(value) == float("inf")))
        return values, is_gap | ~F.size(values).isin(0, width)

    def list_of(self, name: str) -> Column:
        """Return the texts of a multi-valued column; an empty list where there are none."""
        column = F.col(_backquoted(name))
        if isinstance(self._types[name], ArrayType):
            values = column.cast("array<string>")
        else:
            separator = self._settings.list_separator
            text = self._without_nulls(column.cast("string"))
            # Some writers end each value with the separator: the last one ends the list.
            before = F.substring(text, F.lit(1), F.char_length(text) - len(separator))
            text = F.when(text.endswith(separator), before).otherwise(text)
            values = F.split(text, "".join(f"\\{c}" if not c.isalnum() else c for c in separator))
        return F.coalesce(values, F.array().cast("array<string>"))

    def milliseconds(self, name: str) -> Column:
        """Return a time as milliseconds since 1970 UTC; null where it is none, or not in the years 1970 to 9999."""
        column = F.col(_backquoted(name))
        if isinstance(self._types[name], DateType | TimestampType | TimestampNTZType):
            at = F.unix_millis(column.cast("timestamp"))
        elif self._settings.time_unit == "iso":
            at = F.unix_millis(F.try_to_timestamp(column.cast("string")))
        else:
            number = column.cast("string").try_cast("decimal(30,6)")
            factor = F.lit(_MS_PER_UNIT[self._settings.time_unit]).cast("decimal(7,3)")
            at = F.floor(number * factor).try_cast("long")
        # Nearer to 2^63 ms, adding a window would overflow and stop the job.
        return F.when(at.between(0, _YEAR_TEN_THOUSAND_MS - 1), at)

    def _id_of_number(self, number: Column) -> Column:
        """Compute raw_id() of a number without its text, which costs several times as much; null where `nulls` has it."""
        numbers = [int(text) for text in self._settings.nulls if re.fullmatch(r"-?[0-9]{1,18}", text)]
        number = F.when(~number.isin(numbers), number) if numbers else number
        return F.when(number >= 0, number.cast("long")).otherwise(raw_id(number.cast("string")))

    def _without_nulls(self, text: Column) -> Column:
        return F.when(~text.isin(self._settings.nulls), text) if self._settings.nulls else text


def _features(fields: Sequence[Field], texts: _Texts) -> tuple[list[Column], list[Column]]:
    """Return (the columns f0 w0 f1 …, for each numeric and each multi-valued field whether it is bad)."""
    columns, bad = [], []
    for number, entry in enumerate(fields):
        if entry.reads_numbers:
            is_vector = entry.kind_of_field.reads_vectors
            value, is_bad = (
                texts.vector_of(entry.raw_id, entry.num_numbers) if is_vector else texts.number_of(entry.raw_id)
            )
            columns.append(value.alias(f"f{number}"))
            bad.append(is_bad)
            continue
        if entry.arity == "one":
            columns.append(texts.id_of(entry.raw_id).alias(f"f{number}"))
            continue
        ids = texts.ids_of(entry.raw_id)
        columns.append(ids.alias(f"f{number}"))
        bad.append(F.exists(ids, lambda value: value.isNull()))
        if entry.weighted:
            weights = F.transform(texts.list_of(weights_of(entry.raw_id)), lambda text: text.try_cast("float"))
            columns.append(weights.alias(f"w{number}"))
            infinite = F.exists(weights, lambda w: w.isNull() | F.isnan(w) | (F.abs(w) == float("inf")))
            bad += [infinite, F.size(weights) != F.size(ids)]
    return columns, bad


def _joined(spark: SparkSession, log: EventLog, settings: EventsSettings, fields: Catalogue) -> DataFrame:
    """Join the tables to the impressions; one row per impression. Raises InputError for a key that is there twice."""
    needed = needed_columns(settings, fields)
    frame = read(spark, log.impressions, needed)
    for number, (join, table) in enumerate(zip(settings.joins, log.joins, strict=True)):
        keys = {f"_key{place}": F.col(_backquoted(name)).cast("string") for place, name in enumerate(join_key(join))}
        wanted = {name: many for name, many in needed.items() if name not in frame.columns}
        joined = read(spark, table, wanted | dict.fromkeys(join_key(join), "one"))
        joined = joined.select(
            *(column.alias(name) for name, column in keys.items()),
            *(F.col(_backquoted(name)) for name in wanted if name in table.columns),
        )
        twice = joined.groupBy(*keys).count().where("count > 1").orderBy(*keys).limit(1).collect()
        if twice:
            values = ", ".join(str(twice[0][key]) for key in keys)
            raise InputError(
                f"source.events.joins[{number}].path={join.path} has the key {values} in {twice[0]['count']} rows; "
                "a joined table needs one row per key, or impressions would be doubled."
            )
        matches = [F.col(_backquoted(by)).cast("string") == F.col(key) for by, key in zip(join.by, keys, strict=True)]
        frame = frame.join(joined, reduce(Column.__and__, matches), how="left").drop(*keys)
    return frame


def _backquoted(name: str) -> str:
    """Quote a column name, which may hold dots."""
    return "`" + name.replace("`", "``") + "`"
