"""The last, small pass: fetch the lines that grouping rejected, of which only the positions are known."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.aliccp.spark_lines import LineReader
from pipeline.chunks.reasons import REASONS
from pipeline.chunks.sources import SourceFile, read_line_at
from pipeline.contexts.group import LINE_OFFSET, ORDINAL
from pipeline.passes.input import input_frame, split_numbers
from pipeline.passes.job import Job
from pipeline.passes.reports import REPORT, Batches, attempt_name, report_row
from pipeline.spark import running
from pipeline.spark.hashes import partition_keys
from pipeline.storage.commit import QUARANTINE, Staging
from pipeline.storage.parquet_files import quarantine_batch, write_quarantine

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PICKED = "slice int, ordinal int, offset bigint, reason int, line binary"

_PICKED_SCHEMA = pa.schema(
    [("slice", pa.int32()), ("ordinal", pa.int32()), ("offset", pa.int64()), ("reason", pa.int32()), ("line", pa.binary())]
)  # fmt: skip

_REJECTS_PER_SLICE = 1_000_000


def quarantine(
    spark: "SparkSession", job: Job, reports: Sequence[Mapping[str, Any]], staging: Staging
) -> list[dict[str, Any]]:
    """Fetch the lines that grouping set aside; the report of each quarantine file, in the order of the log."""
    rejects = tuple(report["rejects"] for report in reports if "rejects" in report)
    if not rejects:
        return []
    num_X = np.sum([report["num_rejects"] for report in reports if "rejects" in report], axis=0).tolist()
    slices = tuple(
        (ordinal, begin, begin + _REJECTS_PER_SLICE)
        for ordinal, number in enumerate(num_X)
        for begin in range(0, number, _REJECTS_PER_SLICE)
    )
    if job.lines:
        picking = Picking(job.lines, slices, partition_keys(len(slices)), rejects, staging)
        frame = input_frame(spark, job).mapInArrow(picking.pick, PICKED).repartition(len(slices), "slice")
        frame = frame.sortWithinPartitions("slice", "offset").mapInArrow(WritingPicked(picking).write, REPORT)
    else:
        rereading = Rereading(job.logs, slices, rejects, staging)
        frame = running.numbers(spark, len(slices)).mapInArrow(rereading.reread, REPORT)
    table = running.collect(frame, "quarantine", len(slices), "tasks")
    found = [json.loads(report.as_py()) for report in table.column("report")]
    return sorted(found, key=lambda report: int(report["number"]))


@dataclass(frozen=True)
class Rereading:
    """The last, small pass: fetch the lines that grouping set aside, of which only the places are known."""

    sources: tuple[SourceFile, ...]
    slices: tuple[tuple[int, int, int], ...]  # (ordinal, begin, end) in that source's lines set aside, sorted
    rejects: tuple[str, ...]  # what all writing tasks kept
    staging: Staging

    def reread(self, batches: Batches) -> Batches:
        """Slice numbers → the report of a quarantine file each."""
        for number in split_numbers(batches):
            ordinal, begin, end = self.slices[number]
            mine = [rejects[rejects[:, ORDINAL] == ordinal] for rejects in map(self.staging.kept, self.rejects)]
            rejects = np.concatenate(mine)
            rejects = rejects[np.argsort(rejects[:, LINE_OFFSET])][begin:end]
            path = self.staging.path(f"reread-{number:05d}-{attempt_name()}")
            staged = write_quarantine(path, self._lines(self.sources[ordinal], rejects))
            yield report_row(self.staging.hand_in(staged, QUARANTINE, f"reread-{number:05d}") | {"number": number})

    def _lines(self, source: SourceFile, rejects: np.ndarray) -> Batches:
        with source.open() as stream:  # gzip streams forward, for the offsets rise
            for start in range(0, len(rejects), 1024):
                part = rejects[start : start + 1024]
                lines = [read_line_at(stream, offset) for offset in part[:, 1].tolist()]
                reasons = [REASONS[reason] for reason in part[:, 2].tolist()]
                yield quarantine_batch([source.name] * len(part), part[:, 1].tolist(), reasons, lines)


@dataclass(frozen=True)
class Picking:
    """The lines that grouping set aside: picked out of one more reading, and written in the order of the log."""

    reader: LineReader
    slices: tuple[tuple[int, int, int], ...]  # (ordinal, begin, end) in that source's lines set aside, sorted
    keys: tuple[int, ...]  # of the slices, each its own partition's
    rejects: tuple[str, ...]  # what all writing tasks kept
    staging: Staging

    def pick(self, batches: Batches) -> Batches:
        """Rows of `lines` → PICKED."""
        rejects = np.concatenate([self.staging.kept(place) for place in self.rejects])
        rejects = rejects[np.lexsort((rejects[:, LINE_OFFSET], rejects[:, ORDINAL]))]
        for source, start, text in self.reader.texts(batches):
            mine = rejects[rejects[:, ORDINAL] == source.ordinal]
            first, last = np.searchsorted(mine[:, LINE_OFFSET], [start, start + len(text)]).tolist()
            found = [
                (self._key(source.ordinal, first + number), source.ordinal, offset, reason,
                 text[offset - start : text.index(b"\n", offset - start)])
                for number, (_, offset, reason) in enumerate(mine[first:last].tolist())
            ]  # fmt: skip
            if found:
                columns = [pa.array(column, kind) for column, kind in zip(zip(*found, strict=True), _PICKED_SCHEMA.types, strict=True)]  # fmt: skip
                yield pa.RecordBatch.from_arrays(columns, schema=_PICKED_SCHEMA)

    def write(self, batches: Batches, attempt: str) -> Iterator[dict[str, Any]]:
        """PICKED of one partition, sorted → the report of its file."""
        names = {source.ordinal: source.name for source in self.reader.sources.values()}
        waiting = next(batches, None)
        if waiting is None:
            return
        number = self.keys.index(waiting.column("slice")[0].as_py())

        def lines() -> Batches:
            for batch in _with(waiting, batches):
                sources = [names[ordinal] for ordinal in batch.column("ordinal").to_pylist()]
                reasons = [REASONS[reason] for reason in batch.column("reason").to_pylist()]
                yield quarantine_batch(
                    sources, batch.column("offset").to_pylist(), reasons, batch.column("line").to_pylist()
                )

        staged = write_quarantine(self.staging.path(f"reread-{number:05d}-{attempt}"), lines())
        yield self.staging.hand_in(staged, QUARANTINE, f"reread-{number:05d}") | {"number": number}

    def _key(self, ordinal: int, number: int) -> int:
        return next(
            key
            for key, (of, begin, end) in zip(self.keys, self.slices, strict=True)
            if of == ordinal and begin <= number < end
        )


@dataclass(frozen=True)
class WritingPicked:
    """The end of `Picking`: its rows, sorted, as quarantine files."""

    picking: Picking

    def write(self, batches: Batches) -> Batches:
        """PICKED of one partition → the report of its file."""
        for report in self.picking.write(batches, attempt_name()):
            yield report_row(report)


def _with(first: pa.RecordBatch, rest: Batches) -> Batches:
    yield first
    yield from rest
