"""Parse the JSON lines of an event log once, a row a line, into Parquet that the next stages read instead.

    files ─▶ line, file ─LineParser, in tasks─▶ the needed columns as texts and lists of texts ─▶ staging/parsed-<table>

Spark's own reader of JSON does not serve. It makes no row of `[]`, several rows of an array of objects, and one row of
two objects without a line end between them, so the audit could not reconcile the lines. It also takes a list for an id.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, StringType, StructField, StructType

from pipeline.config.events import JSONL, EventsSettings
from pipeline.events.tables import (
    CORRUPT,
    FILE,
    MANY,
    ONE,
    EventLog,
    Table,
    join_key,
    needed_action_columns,
    needed_columns,
)
from pipeline.features.fields import Catalogue

_BLANK = b" \t\r\n"
_NO_PATTERN = str.maketrans("[]", "-_")  # Spark would take joins[0] for a pattern
_TYPES = {ONE: pa.string(), MANY: pa.list_(pa.string())}


def parse_json_lines(
    spark: SparkSession, log: EventLog, settings: EventsSettings, fields: Catalogue, directory: Path
) -> EventLog:
    """Parse the tables of JSON lines below `directory`; return the log with them. Other tables stay as they are."""

    def parse_table(table: Table, needed: Mapping[str, str]) -> Table:
        if table.format != JSONL:
            return table
        chosen = {name: needed[name] for name in table.columns if name in needed}
        path = f"file:{directory}/parsed-{table.name.translate(_NO_PATTERN)}"
        _rows(spark, table, LineParser(chosen, settings.list_separator, tuple(settings.nulls))).write.parquet(path)
        return replace(table, parsed=path)

    needed = needed_columns(settings, fields)
    joins = zip(settings.joins, log.joins, strict=True)
    return EventLog(
        parse_table(log.impressions, needed),
        parse_table(log.actions, needed_action_columns(settings)),
        tuple(parse_table(table, needed | dict.fromkeys(join_key(join), ONE)) for join, table in joins),
    )


def _rows(spark: SparkSession, table: Table, parser: "LineParser") -> DataFrame:
    """Read one row per line that is not blank: the columns that the parser knows, CORRUPT and FILE."""
    text = StringType()
    columns = [StructField(name, ArrayType(text) if of == MANY else text) for name, of in parser.columns.items()]
    schema = StructType([*columns, StructField(CORRUPT, BinaryType()), StructField(FILE, text)])
    lines = spark.read.text(list(table.addresses)).select(F.col("value").cast("binary"), F.input_file_name())
    # A cast to string does not check the bytes, so a line that is no UTF-8 stays as it is.
    return lines.mapInArrow(parser.parse, schema).withColumn(CORRUPT, F.col(CORRUPT).cast("string"))


@dataclass(frozen=True)
class LineParser:
    """The task: lines → rows. A line is one JSON object in UTF-8; if a key stands twice, its last value counts."""

    columns: Mapping[str, str]  # name → ONE or MANY values
    separator: str  # between the values of a text, where many are needed
    nulls: tuple[str, ...]

    def parse(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Parse (line, file) → (the columns, CORRUPT, FILE)."""
        # A number stays the text that it is: 12345678.0 is an id, too.
        decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).decode
        readers = [(name, _text_of_value if of == ONE else self._texts) for name, of in self.columns.items()]
        types = [*(_TYPES[of] for of in self.columns.values()), pa.binary(), pa.string()]
        for batch in batches:
            rows: list[list[Any]] = []
            for line, file in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if not line.strip(_BLANK):
                    continue
                try:
                    row = decode(line.decode())
                    if type(row) is not dict:
                        raise TypeError("no object")
                    if b"\\ud" in line or b"\\uD" in line:
                        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
                    rows.append([*(read(row.get(name)) for name, read in readers), None, file])
                except (ValueError, TypeError, RecursionError):
                    rows.append([*(None for _ in readers), line, file])
            columns = zip(*rows, strict=True) if rows else [()] * len(types)
            arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, names=[*self.columns, CORRUPT, FILE])

    def _texts(self, value: Any) -> list[str | None] | None:
        """Return the texts of a list, or of one text with separators; TypeError where one is a list or an object."""
        if type(value) is list:
            return [_text_of_value(entry) for entry in value]
        text = _text_of_value(value)
        return (
            None if text is None or text in self.nulls else [*text.removesuffix(self.separator).split(self.separator)]
        )


def _text_of_value(value: Any) -> str | None:
    """Return the text of one value (a number is text already); TypeError for a list or an object."""
    if value is None or type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    raise TypeError("no value of its own")
