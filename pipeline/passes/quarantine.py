"""The quarantine pass: read the lines that grouping rejected once more, because grouping only knows their positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.aliccp.spark_lines import LineReader
from pipeline.chunks.reasons import REASONS
from pipeline.chunks.sources import SourceFile, read_line_at, reading_source
from pipeline.contexts.group import LINE_OFFSET, ORDINAL, REJECT_REASON
from pipeline.passes.input import InputLog, LineInput, numbers_in
from pipeline.passes.reports import (
    REPORT,
    DataReport,
    QuarantineReport,
    attempt_name,
    report_row,
    reports_of,
)
from pipeline.spark import running
from pipeline.spark.hashes import partition_keys
from pipeline.spark.running import Batches
from pipeline.storage.commit import QUARANTINE_FOLDER, Staging
from pipeline.storage.parquet_files import QuarantineFile, quarantine_batch, write_quarantine

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

REJECTED_LINES = "slice int, ordinal int, offset bigint, reason int, line binary"

_REJECTED_LINES_SCHEMA = pa.schema(
    [
        ("slice", pa.int32()),
        ("ordinal", pa.int32()),
        ("offset", pa.int64()),
        ("reason", pa.int32()),
        ("line", pa.binary()),
    ]
)

_REJECTS_PER_SLICE = 1_000_000


def quarantine(
    spark: "SparkSession", log: InputLog, reports: Sequence[DataReport], staging: Staging
) -> list[QuarantineReport]:
    """Read the lines that grouping rejected; return the report of each quarantine file, in the order of the log."""
    with_rejects = [report for report in reports if report.rejects]
    if not with_rejects:
        return []
    rejects = tuple(report.rejects for report in with_rejects)
    num_rejects = np.sum([report.num_rejects for report in with_rejects], axis=0).tolist()
    slices = tuple(
        (ordinal, begin, begin + _REJECTS_PER_SLICE)
        for ordinal, number in enumerate(num_rejects)
        for begin in range(0, number, _REJECTS_PER_SLICE)
    )
    if isinstance(log.input, LineInput):  # only Spark can read the files, so all lines are read again
        picking = PickTasks(log.input.lines, slices, partition_keys(len(slices)), rejects, staging)
        frame = log.input.frame(spark).mapInArrow(picking.pick, REJECTED_LINES).repartition(len(slices), "slice")
        frame = frame.sortWithinPartitions("slice", "offset").mapInArrow(picking.write, REPORT)
    else:
        rereading = RereadTasks(log.sources, slices, rejects, staging)
        frame = running.number_partitions(spark, len(slices)).mapInArrow(rereading.reread, REPORT)
    _, found = reports_of(running.collect(frame, "writing quarantined lines", len(slices), "tasks"))
    return found


@dataclass(frozen=True)
class RereadTasks:
    """The tasks of this pass if tasks can open files: each reads the lines of a slice at their offsets."""

    sources: tuple[SourceFile, ...]
    slices: tuple[tuple[int, int, int], ...]  # (ordinal, begin, end) in that source's rejected lines, sorted
    rejects: tuple[str, ...]  # what all writing tasks saved
    staging: Staging

    def reread(self, batches: Batches) -> Batches:
        """Read the lines of the slices with these numbers → the report of a quarantine file each."""
        for number in numbers_in(batches):
            ordinal, begin, end = self.slices[number]
            mine = [rejects[rejects[:, ORDINAL] == ordinal] for rejects in map(self.staging.load_array, self.rejects)]
            rejects = np.concatenate(mine)
            rejects = rejects[np.argsort(rejects[:, LINE_OFFSET])][begin:end]
            path = self.staging.path(f"reread-{number:05d}-{attempt_name()}")
            written = write_quarantine(path, self._lines(self.sources[ordinal], rejects))
            yield report_row(_report(self.staging, number, written))

    def _lines(self, source: SourceFile, rejects: np.ndarray) -> Batches:
        with reading_source(source) as stream:  # gzip streams forward, because the offsets rise
            for start in range(0, len(rejects), 1024):
                part = rejects[start : start + 1024]
                lines = [read_line_at(stream, offset) for offset in part[:, LINE_OFFSET].tolist()]
                reasons = [REASONS[reason] for reason in part[:, REJECT_REASON].tolist()]
                yield quarantine_batch([source.name] * len(part), part[:, LINE_OFFSET].tolist(), reasons, lines)


@dataclass(frozen=True)
class PickTasks:
    """The tasks of this pass if Spark reads the log: pick the rejected lines of all; write them in order."""

    reader: LineReader
    slices: tuple[tuple[int, int, int], ...]  # (ordinal, begin, end) in that source's rejected lines, sorted
    keys: tuple[int, ...]  # of the slices, each its own partition's
    rejects: tuple[str, ...]  # what all writing tasks saved
    staging: Staging

    def pick(self, batches: Batches) -> Batches:
        """Pick the rejected lines out of rows of `lines` → REJECTED_LINES."""
        rejects = np.concatenate([self.staging.load_array(name) for name in self.rejects])
        rejects = rejects[np.lexsort((rejects[:, LINE_OFFSET], rejects[:, ORDINAL]))]
        for source, _, start, text in self.reader.texts(batches):
            mine = rejects[rejects[:, ORDINAL] == source.ordinal]
            first, last = np.searchsorted(mine[:, LINE_OFFSET], [start, start + len(text)]).tolist()
            found = [
                (self._key(source.ordinal, first + number), source.ordinal, offset, reason,
                 text[offset - start : text.index(b"\n", offset - start)])
                for number, (_, offset, reason) in enumerate(mine[first:last].tolist())
            ]  # fmt: skip
            if found:
                columns = zip(zip(*found, strict=True), _REJECTED_LINES_SCHEMA.types, strict=True)
                arrays = [pa.array(column, kind) for column, kind in columns]
                yield pa.RecordBatch.from_arrays(arrays, schema=_REJECTED_LINES_SCHEMA)

    def write(self, batches: Batches) -> Batches:
        """Write REJECTED_LINES of one partition, sorted → the report of its file."""
        names = {source.ordinal: source.name for source in self.reader.sources.values()}
        first = next(batches, None)
        if first is None:
            return
        number = self.keys.index(first.column("slice")[0].as_py())

        def rejected() -> Batches:
            for batch in chain((first,), batches):
                sources = [names[ordinal] for ordinal in batch.column("ordinal").to_pylist()]
                reasons = [REASONS[reason] for reason in batch.column("reason").to_pylist()]
                yield quarantine_batch(
                    sources, batch.column("offset").to_pylist(), reasons, batch.column("line").to_pylist()
                )

        written = write_quarantine(self.staging.path(f"reread-{number:05d}-{attempt_name()}"), rejected())
        yield report_row(_report(self.staging, number, written))

    def _key(self, ordinal: int, number: int) -> int:
        return next(
            key
            for key, (of, begin, end) in zip(self.keys, self.slices, strict=True)
            if of == ordinal and begin <= number < end
        )


def _report(staging: Staging, number: int, written: QuarantineFile) -> QuarantineReport:
    file = staging.seal(written.file, QUARANTINE_FOLDER, f"reread-{number:05d}")
    return QuarantineReport(number, file, written.num_lines, written.examples)
