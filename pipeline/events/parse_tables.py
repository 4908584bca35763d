"""Read the tables that Spark's own readers do not read right once, in tasks, into Parquet that the next stages read.

    files ─▶ splits ─in tasks: CsvParser, LineParser, read_row_groups─▶ the needed columns, CORRUPT, FILE ─▶ staging/parsed-…

CSV: Spark takes bytes that are no UTF-8 for U+FFFD. JSON lines: see json_lines. Parquet: see parquet_rows. None of Spark's
readers opens s3:// without further jars, and none knows .zst without a native library.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import BinaryType, StringType, StructField, StructType

from pipeline.chunks.sources import SourceFile
from pipeline.config.events import EventsSettings
from pipeline.config.tables import CSV, DELTA, ICEBERG, JSONL, PARQUET
from pipeline.events.catalog_tables import copy_catalog_table
from pipeline.events.csv_rows import CsvParser
from pipeline.events.json_lines import LineParser
from pipeline.events.parquet_rows import RowGroups, plain_type, read_row_groups, row_groups_of
from pipeline.events.tables import (
    CORRUPT,
    FILE,
    MANY,
    EventLog,
    Table,
)
from pipeline.events.text_input import TextSplit, can_be_split, whole_lines
from pipeline.features.fields import Catalogue
from pipeline.spark import running
from pipeline.spark.running import Batches
from pipeline.spark.workers import freeze_imports

TablePiece = TextSplit | RowGroups
_PARQUET_FILES = (PARQUET, DELTA, ICEBERG)
_LEAST_SPLIT_BYTES = 1 << 16


def parse_tables(
    spark: SparkSession,
    log: EventLog,
    settings: EventsSettings,
    fields: Catalogue,
    num_partitions: int,
    directory: Path,
) -> EventLog:
    """Read the tables that need it below `directory`; return the log with them. Other tables stay as they are.

    Raises InputError for a file that is damaged, and for a value that its column's type in all files does not hold.
    """
    split_bytes = max(_LEAST_SPLIT_BYTES, -(-log.num_bytes // num_partitions))

    def parse(table: Table, needed: Mapping[str, str]) -> Table:
        if table.by_spark or not table.columns:  # actions that nobody needs
            return table
        path = f"file:{directory}/parsed-{re.sub('[^a-z0-9]+', '-', table.name)}"
        if table.settings.table:
            copy_catalog_table(spark, table, list(needed), path)
        else:
            _rows(spark, table, _reader_of(table, needed, settings), split_bytes).write.parquet(path)
        return replace(table, parsed=path)

    impressions, actions, *joins = (parse(table, needed) for table, needed in log.with_needed(settings, fields))
    return EventLog(impressions, actions, tuple(joins))


@dataclass(frozen=True)
class _Reader:
    """The task: pieces of files → batches of `types`, CORRUPT and FILE."""

    table: Table
    types: Mapping[str, pa.DataType]
    csv: CsvParser | None = None
    lines: LineParser | None = None

    def batches(self, piece: TablePiece) -> Iterator[pa.RecordBatch]:
        """Read one piece."""
        partition = self.table.partitions[piece.number] if self.table.partitions else {}
        file = pa.scalar(_address_of(piece.source))
        own = [name for name in self.types if name not in partition]
        for columns, rejected in self._columns(piece, own):
            num_rows = len(rejected)
            found = dict(zip(own, columns, strict=True))
            for name, text in partition.items():
                if name in self.types:
                    found[name] = pa.repeat(pa.scalar(text, pa.string()), num_rows).cast(self.types[name])
            arrays = [*(found[name] for name in self.types), rejected, pa.repeat(file, num_rows)]
            yield pa.RecordBatch.from_arrays(arrays, names=[*self.types, CORRUPT, FILE])

    def _columns(self, piece: TablePiece, own: Sequence[str]) -> Iterator[tuple[list[pa.Array], pa.Array]]:
        if isinstance(piece, RowGroups):
            for columns in read_row_groups(piece, {name: self.types[name] for name in own}):
                yield columns, pa.nulls(len(columns[0]), pa.binary())
        elif self.csv:
            yield from self.csv.parse(piece, self.table.of_file[piece.number])
        elif self.lines:
            for lines in whole_lines(piece, self.table.settings.encoding):
                yield self.lines.parse(lines.splitlines())

    def schema(self) -> StructType:
        """Return the schema of the frame."""
        columns = [
            StructField(name, from_arrow_type(kind, prefer_timestamp_ntz=True)) for name, kind in self.types.items()
        ]
        return StructType([*columns, StructField(CORRUPT, BinaryType()), StructField(FILE, StringType())])


def _reader_of(table: Table, needed: Mapping[str, str], settings: EventsSettings) -> _Reader:
    partition = table.partitions[0] if table.partitions else {}
    own = {name: of for name, of in needed.items() if name not in partition}
    if table.format in _PARQUET_FILES:
        return _Reader(table, {name: plain_type(table.columns[name]) for name in needed})
    text, texts = pa.string(), pa.list_(pa.string())
    if table.format == CSV:
        return _Reader(table, dict.fromkeys(needed, text), csv=CsvParser.of(table.settings, tuple(own)))
    assert table.format == JSONL, table.format
    types = {name: texts if of == MANY and name in own else text for name, of in needed.items()}
    return _Reader(table, types, lines=LineParser(own, settings.list_separator, tuple(settings.nulls)))


def _rows(spark: SparkSession, table: Table, reader: _Reader, split_bytes: int) -> DataFrame:
    """Read one row per row of the files: the needed columns, CORRUPT and FILE."""
    pieces = _grouped(_cut_table(spark, table, reader, split_bytes), split_bytes)

    def read(batches: Batches) -> Batches:
        freeze_imports()
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for piece in pieces[number]:
                    yield from reader.batches(piece)

    frame = running.number_partitions(spark, len(pieces)).mapInArrow(read, reader.schema())
    # A cast to string does not check the bytes, so a line that is no UTF-8 stays as it is.
    return frame.withColumn(CORRUPT, F.col(CORRUPT).cast("string"))


def _cut_table(spark: SparkSession, table: Table, reader: _Reader, split_bytes: int) -> list[TablePiece]:
    pieces: list[TablePiece] = []
    long: list[int] = []  # files of CSV to be cut where a row begins
    for number, file in enumerate(table.files):
        if table.format in _PARQUET_FILES:
            pieces += row_groups_of(file, number, split_bytes)
        elif file.bytes <= split_bytes or not can_be_split(file, table.settings.encoding):
            pieces.append(TextSplit(file, number))
        elif table.format == CSV:
            long.append(number)
        else:
            starts = range(0, file.bytes, split_bytes)
            pieces += [TextSplit(file, number, start, min(start + split_bytes, file.bytes)) for start in starts]
    if long:
        pieces += _cut_where_rows_begin(spark, table, reader, long, split_bytes)
    return pieces


def _cut_where_rows_begin(
    spark: SparkSession, table: Table, reader: _Reader, numbers: Sequence[int], split_bytes: int
) -> list[TablePiece]:
    """Cut files of CSV, each looked through by one task: only that tells a line break within quotes from one between rows."""
    files, of_file, parser = table.files, table.of_file, reader.csv
    assert parser is not None

    def find(batches: Batches) -> Batches:
        freeze_imports()
        for batch in batches:
            for place in batch.column(0).to_pylist():
                number = numbers[place]
                starts = parser.row_starts(TextSplit(files[number], number), len(of_file[number]), split_bytes)
                yield pa.RecordBatch.from_arrays(
                    [pa.array([number] * len(starts), pa.int64()), pa.array(starts, pa.int64())], ["number", "start"]
                )

    frame = running.number_partitions(spark, len(numbers)).mapInArrow(find, "number long, start long")
    found = running.collect(frame, f"finding the rows of {table.name}", len(numbers), "files").sort_by(
        [("number", "ascending"), ("start", "ascending")]
    )
    pairs = list(zip(found["number"].to_pylist(), found["start"].to_pylist(), strict=True))
    ends = [
        after[1] if after[0] == number else None
        for (number, _), after in zip(pairs, [*pairs[1:], (None, 0)], strict=True)
    ]
    return [TextSplit(files[number], number, start, end) for (number, start), end in zip(pairs, ends, strict=True)]


def _grouped(pieces: Sequence[TablePiece], split_bytes: int) -> list[list[TablePiece]]:
    """Group pieces into partitions of about `split_bytes`: thousands of small files are no thousands of tasks."""
    groups: list[list[TablePiece]] = []
    room = 0
    for piece in pieces:
        size = split_bytes
        if isinstance(piece, TextSplit):
            size = (piece.source.bytes if piece.end is None else piece.end) - piece.start
        if not groups or size > room:
            groups.append([])
            room = split_bytes
        groups[-1].append(piece)
        room -= size
    return groups


def _address_of(source: SourceFile) -> str:
    """Return the address of a file as Spark writes it, percent-encoded."""
    scheme, _, path = source.path.rpartition("://")
    return f"{scheme}://{quote(path)}" if scheme else f"file://{quote(path)}"
