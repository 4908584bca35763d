"""Read a table of an event log as a DataFrame, whatever its format, and its columns as texts, ids, numbers and times.

    source files ─read()─▶ columns as they are ─Texts─▶ columns of one type, which rows.py gives their meaning

One rule makes the ids of every column. The text of a whole number from 0 to 2^63 - 1, without leading zeros, is that
number. Any other text becomes the lower 63 bits of its XXH64 with seed 42, which Spark calls xxhash64.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    FractionalType,
    IntegralType,
    StringType,
)

from pipeline.config.events import (
    INTEGER,
    LOWER,
    TRIM,
    ActionsSettings,
    EventsSettings,
    ImpressionsSettings,
    JoinSettings,
)
from pipeline.events.parquet_rows import path_in
from pipeline.events.tables import (
    CORRUPT,
    FILE,
    Table,
    weights_of,
)
from pipeline.events.times import milliseconds
from pipeline.features.fields import Field

#: What stands between the texts of several columns that are read as their tuple.
TUPLE = "\x1f"
#: A whole number as some tables write it: 0100, +100 and 100.0 are 100.
_WHOLE_NUMBER_TEXT = r"^\s*(?:\+|(-))?0*([0-9]+?)(?:\.0*)?\s*$"
_CLEANING: dict[str, Callable[[Column], Column]] = {
    TRIM: lambda text: F.regexp_replace(text, r"^\s+|\s+$", ""),
    LOWER: F.lower,
    INTEGER: lambda text: F.regexp_replace(text, _WHOLE_NUMBER_TEXT, "$1$2"),
}
_DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\z"


def read(spark: SparkSession, table: Table, needed: Mapping[str, str]) -> DataFrame:
    """Read the `needed` columns that the table has, CORRUPT (null if readable) and FILE; one row per row of the files."""
    chosen = [name for name in table.columns if name in needed]
    if table.parsed:
        return spark.read.parquet(table.parsed).select(*map(backquoted, chosen), CORRUPT, FILE)
    assert table.by_spark, "the others are parsed before (parse_tables)"
    frame = spark.read.parquet(*table.addresses)
    return select_columns(frame, chosen, F.input_file_name())


def select_columns(frame: DataFrame, names: Sequence[str], file: Column) -> DataFrame:
    """Select columns and fields of structs (user.id), each under its name, with CORRUPT and FILE."""
    columns = [F.col(".".join(map(backquoted, path_in(frame.columns, name)))).alias(name) for name in names]
    return frame.select(*columns, F.lit(None).cast("string").alias(CORRUPT), file.alias(FILE))


def cleaned(frame: DataFrame, clean: Mapping[str, Sequence[str]]) -> DataFrame:
    """Apply each column's cleanings, in their order, where the column is read; what is left of it is text."""
    for column in [name for name in clean if name in frame.columns]:
        text = F.col(backquoted(column))
        if isinstance(frame.schema[column].dataType, FractionalType):
            text = text.cast("decimal(38,6)")  # a float of 10 million or more has an exponent as text
        text = text.cast("string")
        for cleaning in clean[column]:
            text = _CLEANING[cleaning](text)
        frame = frame.withColumn(column, text)
    return frame


def raw_id(text: Column) -> Column:
    """Return the int64 of an id given as text; null for null."""
    number = F.when(text.rlike(r"^(0|[1-9][0-9]{0,18})\z"), text.try_cast("long"))
    return F.when(text.isNotNull(), F.coalesce(number, F.xxhash64(text).bitwiseAND(F.lit((1 << 63) - 1))))


class Texts:
    """The columns of a frame as text, null where `source.events.nulls` has the text."""

    def __init__(self, frame: DataFrame, settings: EventsSettings) -> None:
        self._types = {entry.name: entry.dataType for entry in frame.schema.fields}
        self._settings = settings

    def of(self, name: str) -> Column:
        """Return one column."""
        return self._without_nulls(F.col(backquoted(name)).cast("string"))

    def tuple_of(self, names: Sequence[str]) -> Column:
        """Return several columns as one; null where one is."""
        texts = [self.of(name) for name in names]
        return reduce(lambda left, right: F.concat(left, F.lit(TUPLE), right), texts)

    def id_of(self, name: str) -> Column:
        """Return one column as ids."""
        if isinstance(self._types[name], IntegralType):
            return self._id_of_number(F.col(backquoted(name)))
        return raw_id(self.of(name))

    def ids_of(self, name: str) -> Column:
        """Return the ids of a multi-valued column; an empty list where there are none."""
        kind = self._types[name]
        if isinstance(kind, ArrayType) and isinstance(kind.elementType, IntegralType):
            return F.coalesce(F.transform(F.col(backquoted(name)), self._id_of_number), F.array().cast("array<long>"))
        return F.transform(self.list_of(name), lambda text: raw_id(self._without_nulls(text)))

    def number_of(self, name: str) -> tuple[Column, Column]:
        """Return (one column as float32, whether it holds something else than a finite number); null is missing."""
        kind = self._types[name]
        text = self.of(name)
        is_number = text.rlike(_DECIMAL) if isinstance(kind, StringType) else F.lit(True)
        number = F.when(is_number & text.isNotNull(), F.col(backquoted(name)).try_cast("float"))
        is_finite = number.isNotNull() & ~F.isnan(number) & (F.abs(number) != float("inf"))
        return number, text.isNotNull() & ~F.coalesce(is_finite, F.lit(False))

    def vector_of(self, name: str, width: int) -> tuple[Column, Column]:
        """Return (one column as lists of float32, whether a list has other than `width` finite numbers). [] is missing."""
        kind = self._types[name]
        if isinstance(kind, ArrayType) and not isinstance(kind.elementType, StringType):
            values = F.transform(F.col(backquoted(name)), lambda value: value.try_cast("float"))
            values = F.coalesce(values, F.array().cast("array<float>"))
        else:
            values = F.transform(self.list_of(name), lambda text: F.when(text.rlike(_DECIMAL), text.try_cast("float")))
        is_gap = F.exists(values, lambda value: value.isNull() | F.isnan(value) | (F.abs(value) == float("inf")))
        return values, is_gap | ~F.size(values).isin(0, width)

    def list_of(self, name: str) -> Column:
        """Return the texts of a multi-valued column; an empty list where there are none."""
        column = F.col(backquoted(name))
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

    def milliseconds(self, name: str, entry: ImpressionsSettings | ActionsSettings | JoinSettings) -> Column:
        """Return a time as milliseconds since 1970 UTC; null where it is none, or not in the years 1970 to 9999."""
        unit, zone = entry.time_unit or self._settings.time_unit, entry.time_zone or self._settings.time_zone
        return milliseconds(F.col(backquoted(name)), self._types[name], unit, zone)

    def _id_of_number(self, number: Column) -> Column:
        """Compute raw_id() of a number without its text, which costs several times as much; null where `nulls` has it."""
        numbers = [int(text) for text in self._settings.nulls if re.fullmatch(r"-?[0-9]{1,18}", text)]
        number = F.when(~number.isin(numbers), number) if numbers else number
        return F.when(number >= 0, number.cast("long")).otherwise(raw_id(number.cast("string")))

    def _without_nulls(self, text: Column) -> Column:
        return F.when(~text.isin(self._settings.nulls), text) if self._settings.nulls else text


def features_of(fields: Sequence[Field], texts: Texts) -> tuple[list[Column], list[tuple[str, Column]]]:
    """Return (the columns f0 w0 f1 …, for each numeric and each multi-valued field its column and whether it is bad)."""
    columns: list[Column] = []
    bad: list[tuple[str, Column]] = []
    for number, entry in enumerate(fields):
        if entry.reads_numbers:
            is_vector = entry.kind_of_field.reads_vectors
            value, is_bad = (
                texts.vector_of(entry.raw_id, entry.num_numbers) if is_vector else texts.number_of(entry.raw_id)
            )
            columns.append(value.alias(f"f{number}"))
            bad.append((entry.raw_id, is_bad))
            continue
        if entry.arity == "one":
            columns.append(texts.id_of(entry.raw_id).alias(f"f{number}"))
            continue
        ids = texts.ids_of(entry.raw_id)
        columns.append(ids.alias(f"f{number}"))
        bad.append((entry.raw_id, F.exists(ids, lambda value: value.isNull())))
        if entry.weighted:
            weights = F.transform(texts.list_of(weights_of(entry.raw_id)), lambda text: text.try_cast("float"))
            columns.append(weights.alias(f"w{number}"))
            infinite = F.exists(weights, lambda w: w.isNull() | F.isnan(w) | (F.abs(w) == float("inf")))
            name = weights_of(entry.raw_id)
            bad += [(name, infinite), (name, F.size(weights) != F.size(ids))]
    return columns, bad


def backquoted(name: str) -> str:
    """Quote a column name, which may hold dots."""
    return "`" + name.replace("`", "``") + "`"
