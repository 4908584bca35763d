"""What a pass over the log begins with: the numbers of the input splits, which tasks read, or the lines themselves."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.aliccp.reader import ChunkReader
from pipeline.aliccp.spark_lines import LineReader, lines
from pipeline.chunks.chunk import Chunk
from pipeline.chunks.sources import InputSplit
from pipeline.config.preprocess import SPARK
from pipeline.events.reader import EventReader
from pipeline.passes.job import Job
from pipeline.passes.reports import Batches
from pipeline.spark import running
from pipeline.spark.workers import freeze_imports

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Reader = ChunkReader | EventReader | LineReader


def chunks_of(reader: Reader, splits: Sequence[InputSplit], batches: Batches) -> Iterator[Chunk]:
    """The chunks of the splits whose numbers come, or of the lines that come themselves."""
    if isinstance(reader, LineReader):
        yield from reader.chunks(batches)
        return
    for number in split_numbers(batches):
        yield from reader.read(splits[number])


def input_frame(spark: "SparkSession", job: Job) -> "DataFrame":
    """What a pass over the log begins with: the numbers of the input splits, or the lines themselves."""
    if job.settings.source.reader != SPARK:
        return running.numbers(spark, len(job.splits))
    sources = list(dict.fromkeys(split.source for split in job.splits))
    return lines(spark, sources, job.settings.source.split_bytes)


def split_numbers(batches: Batches) -> Iterator[int]:
    """Yield the numbers of the input splits that a task has to read."""
    freeze_imports()
    for batch in batches:
        yield from batch.column(0).to_pylist()
