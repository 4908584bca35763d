"""JSON lines of an event log, taken apart once: a row a line, as Parquet that the next stages read instead.

    files ─▶ line, file ─LineParser, in tasks─▶ the needed columns as texts and lists of texts ─▶ staging/parsed-<table>

Not Spark's own reader of JSON: it makes no row of `[]`, several of an array of objects, and one of two objects that lost
the line end between them, so that the audit would not balance; and of a list where one value should be it makes an id.
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
from pipeline.events.tables import CORRUPT, FILE, MANY, ONE, EventLog, Table, key_of, needed_columns, needed_of_actions
from pipeline.features.fields import Catalogue

_BLANK = b" \t\r\n"
_TYPES = {ONE: pa.string(), MANY: pa.list_(pa.string())}


def parsed(
    spark: SparkSession, log: EventLog, settings: EventsSettings, fields: Catalogue, directory: Path
) -> EventLog:
    """The log with its tables of JSON lines parsed below `directory`; other tables stay as they are."""

    def once(table: Table, needed: Mapping[str, str]) -> Table:
        if table.format != JSONL:
            return table
        chosen = {name: needed[name] for name in table.columns if name in needed}
        path = f"file:{directory}/parsed-{table.name}"
        _rows(spark, table, LineParser(chosen, settings.list_separator, tuple(settings.nulls))).write.parquet(path)
        return replace(table, parsed=path)

    needed = needed_columns(settings, fields)
    joins = zip(settings.joins, log.joins, strict=True)
    return EventLog(
        once(log.impressions, needed),
        once(log.actions, needed_of_actions(settings)),
        tuple(once(table, needed | dict.fromkeys(key_of(join), ONE)) for join, table in joins),
    )


def _rows(spark: SparkSession, table: Table, parser: "LineParser") -> DataFrame:
    """One row a line that is not blank: the columns that the parser knows, CORRUPT and FILE."""
    text = StringType()
    columns = [StructField(name, ArrayType(text) if of == MANY else text) for name, of in parser.columns.items()]
    schema = StructType([*columns, StructField(CORRUPT, BinaryType()), StructField(FILE, text)])
    lines = spark.read.text(list(table.addresses)).select(F.col("value").cast("binary"), F.input_file_name())
    # What is no UTF-8 stays the bytes that it is: a cast does not look at them.
    return lines.mapInArrow(parser.parse, schema).withColumn(CORRUPT, F.col(CORRUPT).cast("string"))


@dataclass(frozen=True)
class LineParser:
    """The task: lines → rows. A line is one JSON object in UTF-8; of a key that stands twice the last value counts."""

    columns: Mapping[str, str]  # name → ONE or MANY values
    separator: str  # between the values of a text, where many are needed
    nulls: tuple[str, ...]

    def parse(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """(line, file) → (the columns, CORRUPT, FILE)."""
        # A number stays as it is written: 12345678.0 is an id, too.
        decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).decode
        readers = [(name, _text if of == ONE else self._texts) for name, of in self.columns.items()]
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
        """The texts of a list, or of one text with separators; TypeError where one is a list or an object itself."""
        if type(value) is list:
            return [_text(entry) for entry in value]
        text = _text(value)
        return None if text is None or text in self.nulls else [*text.split(self.separator)]


def _text(value: Any) -> str | None:
    """The text of one value (a number's is a str already); TypeError for a list or an object."""
    if value is None or type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    raise TypeError("no value of its own")
