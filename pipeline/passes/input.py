"""The log that the passes read. It comes into their tasks as numbers of input splits, or as the lines themselves.

Job ─open_log()─▶ InputLog    source=aliccp                      the raw files; tasks open them
                              source=aliccp, source.reader=spark lines that Spark reads; tasks get them as rows
                              source=events                      labelled impressions, which the first stage writes
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.aliccp.byte_ranges import input_splits
from pipeline.aliccp.reader import ChunkReader
from pipeline.aliccp.spark_lines import LineReader, line_reader, lines
from pipeline.chunks.chunk import Chunk
from pipeline.chunks.sources import ACTIONS, InputSplit, SourceFile
from pipeline.config.preprocess import SPARK
from pipeline.events.reader import EventReader
from pipeline.passes.job import Job
from pipeline.spark import running
from pipeline.spark.exceptions import plain_errors
from pipeline.spark.running import Batches
from pipeline.spark.workers import freeze_imports
from pipeline.storage.commit import Staging

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from pipeline.events.label import LabelledLog


class TaskInput(Protocol):
    """The way of a log into the tasks of a pass. Tasks carry it, so it can be pickled."""

    def frame(self, spark: "SparkSession") -> "DataFrame":
        """Make the rows that `chunks` takes, on the driver."""

    def chunks(self, batches: Batches) -> Iterator[Chunk]:
        """Read and parse the input splits of these rows, or the lines in them, in a task."""


@dataclass(frozen=True)
class SplitInput:
    """An input whose rows are numbers of input splits, which the tasks read."""

    splits: tuple[InputSplit, ...]
    reader: ChunkReader | EventReader

    def frame(self, spark: "SparkSession") -> "DataFrame":
        return running.number_partitions(spark, len(self.splits))

    def chunks(self, batches: Batches) -> Iterator[Chunk]:
        for number in numbers_in(batches):
            yield from self.reader.read(self.splits[number])


@dataclass(frozen=True)
class LineInput:
    """An input whose rows are the lines, read by Spark."""

    sources: tuple[SourceFile, ...]
    split_bytes: int
    lines: LineReader

    def frame(self, spark: "SparkSession") -> "DataFrame":
        return lines(spark, self.sources, self.split_bytes)

    def chunks(self, batches: Batches) -> Iterator[Chunk]:
        return self.lines.chunks(batches)


@dataclass(frozen=True)
class InputLog:
    """The log that the passes read."""

    sources: tuple[SourceFile, ...]  # by ordinal
    splits: tuple[InputSplit, ...]
    input: TaskInput
    events: "LabelledLog | None" = None  # of source=events: what its first stage wrote


def open_log(spark: "SparkSession", job: Job, staging: Staging, needs_labels: bool = True) -> InputLog:
    """Prepare the log for the passes: label an event log; with source.reader=spark, find where blocks begin."""
    if job.settings.source.events:
        found = _label_events(spark, job, staging) if needs_labels else _number_events(spark, job, staging)
        return InputLog(found.sources, found.splits, SplitInput(found.splits, found.reader), found)
    split_bytes = job.settings.source.split_bytes
    read = tuple(source for source in job.sources if source.table != ACTIONS)  # the action log is read on the driver
    splits = tuple(input_splits(list(read), split_bytes))
    reader = ChunkReader.of(job.catalogue, job.settings, needs_labels)
    if job.settings.source.reader != SPARK:
        return InputLog(job.sources, splits, SplitInput(splits, reader))
    frame = lines(spark, read, split_bytes)
    return InputLog(job.sources, splits, LineInput(read, split_bytes, line_reader(frame, reader, splits)))


def numbers_in(batches: Batches) -> Iterator[int]:
    """Yield the numbers that a task has to work on."""
    freeze_imports()
    for batch in batches:
        yield from batch.column(0).to_pylist()


def _label_events(spark: "SparkSession", job: Job, staging: Staging) -> "LabelledLog":
    """Attribute the actions, and write the labelled impressions."""
    from pipeline.events.label import label  # it imports pyspark

    settings, events = job.settings, job.settings.source.events
    assert job.events is not None
    assert events is not None
    with plain_errors():
        return label(
            spark, job.events, events, job.catalogue, settings.labels.daction, settings.checks,
            _partitions_of_tables(spark, job), staging.tables, job.base is None, job.left_by_base,
        )  # fmt: skip


def _number_events(spark: "SparkSession", job: Job, staging: Staging) -> "LabelledLog":
    """Write the impressions, numbered within their contexts, without a label."""
    from pipeline.events.label import number_impressions  # it imports pyspark

    events = job.settings.source.events
    assert job.events is not None
    assert events is not None
    with plain_errors():
        return number_impressions(
            spark,
            job.events,
            events,
            job.catalogue,
            job.settings.checks,
            _partitions_of_tables(spark, job),
            staging.tables,
        )


def _partitions_of_tables(spark: "SparkSession", job: Job) -> int:
    num_bytes = job.events.num_bytes if job.events else sum(source.bytes for source in job.sources)
    return max(spark.sparkContext.defaultParallelism, -(-num_bytes // job.settings.source.split_bytes))
