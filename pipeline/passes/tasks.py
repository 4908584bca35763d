"""What runs inside Spark: the task functions of each stage, from Arrow batches to Arrow batches.

Only this module, counting.py and spark.py know how Spark calls us. A task finds its work by the number in its batch, so the
closures stay small, and hands its counts back as JSON in a row of their own.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.aliccp.parse import REASONS
from pipeline.aliccp.spark_lines import LineReader, Picking
from pipeline.audit.statistics import Statistics
from pipeline.audit.tally import GRAIN, Tally
from pipeline.chunks.chunk import SCOPE_OF, Chunk, ChunkReader
from pipeline.chunks.sources import PERIODS, InputSplit, SourceFile, read_line_at
from pipeline.contexts.buckets import Buckets
from pipeline.contexts.encode import encode
from pipeline.contexts.group import Selected, grouped, select
from pipeline.contexts.records import SCHEMA, layout_of
from pipeline.contexts.rows import Rows, rows_of, schema_of
from pipeline.contexts.scatter import scattered
from pipeline.dataset.manifest import SPLITS, InputError
from pipeline.events.reader import EventReader
from pipeline.features.lookup_table import Lookup
from pipeline.passes import duplicates
from pipeline.spark.workers import settle
from pipeline.storage.commit import QUARANTINE, Staging
from pipeline.storage.parquet_files import PartWriter, quarantine_batch, write_quarantine

Batches = Iterator[pa.RecordBatch]
Task = Callable[[Batches], Batches]
Reader = ChunkReader | EventReader | LineReader

#: Rows of the second pass and of the last: a JSON object for each file written.
REPORT = "report binary"
REPORT_SCHEMA = pa.schema([("report", pa.binary())])
#: Rows of the writing pass that are no record: the report of a task before the last shuffle.
_REPORT_TAG = 127


@dataclass(frozen=True)
class Writing:
    """The second pass: encode, and behind the shuffle group and write."""

    splits: tuple[InputSplit, ...]
    reader: Reader
    buckets: Buckets
    sources: tuple[SourceFile, ...]
    tables: Callable[[], Path]  # where this host has the lookup tables and the action ids
    staging: Staging
    max_impressions: int
    impressions_per_row_group: int
    with_daction: bool
    scatter_chunks: bool = False

    def encode(self, batches: Batches) -> Batches:
        """Split numbers → records.SCHEMA."""
        directory = self.tables()
        lookup = Lookup.load(directory)
        repeated = duplicates.load(directory)
        layouts = {table: layout_of(self.reader.catalogue, scope) for table, scope in SCOPE_OF.items()}
        # Impressions of event logs, which have no period, come with all their labels.
        paths = {period: actions_path(directory, period) for period in PERIODS if self.with_daction}
        acted = {period: np.load(path, mmap_mode="r") for period, path in paths.items() if path.exists()}
        for chunk in chunks_of(self.reader, self.splits, batches):
            duplicates.mark(chunk, repeated)
            yield from encode(chunk, layouts[chunk.source.table], lookup, self.buckets, acted.get(chunk.source.period))

    def scatter(self, batches: Batches) -> Batches:
        """Sorted records of a partition → the records of its pieces, and in a row of its own what the audit is to know."""
        for key, mine in _by_bucket(batches):
            split, number = self.buckets.place(key)
            if split == "quarantine":
                yield from mine
                continue
            found = Found()
            for selected in self._selected(SPLITS.index(split), mine, found):
                self._add_statistics(found, rows_of(selected, self.reader.catalogue, self._schema))
                yield from scattered(selected, SPLITS.index(split), self.buckets)
            report = self._report(f"{split}-{number:05d}-{_attempt()}", found)
            yield _record(key, _REPORT_TAG, json.dumps(report | {"split": split, "number": number}).encode())

    def write(self, batches: Batches) -> Batches:
        """Sorted records of a partition → the report of its file; a partition may be empty."""
        for key, mine in _by_bucket(batches):
            split, number = self.buckets.place(key)
            name = f"{split}-{number:05d}-{_attempt()}"
            if split == "quarantine":
                staged = write_quarantine(self.staging.path(name), (self._quarantined(batch) for batch in mine))
                reports = [self.staging.hand_in(staged, QUARANTINE, f"part-{number:05d}")]
            elif self.scatter_chunks:
                pieces, reports = _without_reports(mine)
                found, file = self._write_rows(name, split, number, pieces)
                if any(map(len, found.rejects)):
                    raise InputError("Two pieces of contexts fell on one place in the order; give another seed=….")
                reports.append(file)
            else:
                found, file = self._write_rows(name, split, number, mine)
                reports = [self._report(name, found) | file]
            for report in reports:
                yield _reported(report | {"split": split, "number": number})

    def _write_rows(self, name: str, split: str, number: int, batches: Batches) -> tuple["Found", dict[str, Any]]:
        """Write one file; what was found, and the file as `Store.place` needs it, if there was a row."""
        writer = PartWriter(self.staging.path(name), self._schema, self.impressions_per_row_group, self.with_daction)
        found = Found()
        for selected in self._selected(SPLITS.index(split), batches, found):
            rows = rows_of(selected, self.reader.catalogue, self._schema)
            if not self.scatter_chunks:
                self._add_statistics(found, rows)
            writer.add(rows)
        staged = writer.finish()
        return found, {"file": self.staging.hand_in(staged, split, f"part-{number:05d}")} if staged else {}

    @property
    def _schema(self) -> pa.Schema:
        return schema_of(self.reader.catalogue, self.with_daction)

    def _selected(self, split: int, batches: Batches, found: "Found") -> Iterator[Selected]:
        """The rows of each batch of whole groups that has any; what else is found is added to `found`."""
        for batch in grouped(batches):
            selected = select(batch, self.max_impressions)
            self._count(found.tally, split, selected)
            found.rejects.append(selected.reject_X3)
            if len(selected.context_N):
                yield selected

    def _add_statistics(self, found: "Found", rows: Rows) -> None:
        found.statistics.add(rows.table, self.reader.catalogue, rows.key_N, rows.count_NK)

    def _report(self, name: str, found: "Found") -> dict[str, Any]:
        report: dict[str, Any] = {"tally": found.tally.to_json()}
        report |= found.statistics.report(lambda what, array: self.staging.keep(f"{name}-{what}", array))
        reject_X3 = np.concatenate(found.rejects)
        if len(reject_X3):
            report["rejects"] = self.staging.keep(f"{name}-rejects", reject_X3)
            report["num_rejects"] = np.bincount(reject_X3[:, 0], minlength=len(self.sources)).tolist()
        return report

    def _count(self, tally: Tally, split: int, selected: Selected) -> None:
        tally.add(split, "contexts", "written", selected.num_contexts)
        tally.add(split, "contexts", "without_impressions", selected.num_contexts_alone)
        tally.add(split, "impressions", "written", len(selected.impression_I))
        ordinal_X, offset_X, reason_X = selected.reject_X3.T
        for ordinal, reason in np.unique(selected.reject_X3[:, [0, 2]], axis=0).tolist():
            chosen_X = (ordinal_X == ordinal) & (reason_X == reason)
            grain, name = GRAIN[self.sources[ordinal].table], REASONS[reason]
            tally.add(split, grain, name, int(np.count_nonzero(chosen_X)))
            tally.note_first(name, ordinal, int(offset_X[chosen_X].min()))

    def _quarantined(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = [self.sources[ordinal].name for ordinal in batch.column("ordinal").to_pylist()]
        reasons = [REASONS[tag] for tag in batch.column("tag").to_pylist()]
        return quarantine_batch(names, batch.column("offset").to_pylist(), reasons, batch.column("blob").to_pylist())


@dataclass
class Found:
    """What grouping finds in a partition beside rows."""

    tally: Tally = field(default_factory=Tally)
    statistics: Statistics = field(default_factory=Statistics)
    rejects: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Rereading:
    """The last, small pass: fetch the lines that grouping set aside, of which only the places are known."""

    sources: tuple[SourceFile, ...]
    slices: tuple[tuple[int, int, int], ...]  # (ordinal, begin, end) in that source's lines set aside, sorted
    rejects: tuple[str, ...]  # what all writing tasks kept
    staging: Staging

    def reread(self, batches: Batches) -> Batches:
        """Slice numbers → the report of a quarantine file each."""
        for number in _numbers(batches):
            ordinal, begin, end = self.slices[number]
            mine = [reject_X3[reject_X3[:, 0] == ordinal] for reject_X3 in map(self.staging.kept, self.rejects)]
            reject_X3 = np.concatenate(mine)
            reject_X3 = reject_X3[np.argsort(reject_X3[:, 1])][begin:end]
            path = self.staging.path(f"reread-{number:05d}-{_attempt()}")
            staged = write_quarantine(path, self._lines(self.sources[ordinal], reject_X3))
            yield _reported(self.staging.hand_in(staged, QUARANTINE, f"reread-{number:05d}") | {"number": number})

    def _lines(self, source: SourceFile, reject_X3: np.ndarray) -> Batches:
        with source.open() as stream:  # gzip streams forward, for the offsets rise
            for start in range(0, len(reject_X3), 1024):
                part = reject_X3[start : start + 1024]
                lines = [read_line_at(stream, offset) for offset in part[:, 1].tolist()]
                reasons = [REASONS[reason] for reason in part[:, 2].tolist()]
                yield quarantine_batch([source.name] * len(part), part[:, 1].tolist(), reasons, lines)


@dataclass(frozen=True)
class WritingPicked:
    """The end of `Picking`: its rows, sorted, as quarantine files."""

    picking: Picking

    def write(self, batches: Batches) -> Batches:
        """PICKED of one partition → the report of its file."""
        for report in self.picking.write(batches, _attempt()):
            yield _reported(report)


def actions_path(directory: Path, period: str) -> Path:
    """Where the sorted ids of impressions with a counted action lie."""
    return directory / f"actions_{period}.npy"


def chunks_of(reader: Reader, splits: Sequence[InputSplit], batches: Batches) -> Iterator[Chunk]:
    """The chunks of the splits whose numbers come, or of the lines that come themselves."""
    if isinstance(reader, LineReader):
        yield from reader.chunks(batches)
        return
    for number in _numbers(batches):
        yield from reader.read(splits[number])


def _numbers(batches: Batches) -> Iterator[int]:
    settle()
    for batch in batches:
        yield from batch.column(0).to_pylist()


def _by_bucket(batches: Batches) -> Iterator[tuple[int, Batches]]:
    """(bucket key, its batches) of a partition sorted by bucket; each must be used up before the next."""
    settle()
    waiting = (piece for batch in batches for piece in _cut_at_buckets(batch))
    piece = next(waiting, None)
    while piece is not None:
        key = piece.column("bucket")[0].as_py()

        def mine(key: int = key) -> Batches:
            nonlocal piece
            while piece is not None and piece.column("bucket")[0].as_py() == key:
                yield piece
                piece = next(waiting, None)

        yield key, mine()


def _cut_at_buckets(batch: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
    bucket_R = batch.column("bucket").to_numpy()
    bounds = np.flatnonzero(np.r_[True, bucket_R[1:] != bucket_R[:-1], True]).tolist() if len(bucket_R) else []
    return [batch.slice(start, stop - start) for start, stop in pairwise(bounds)]


def _record(key: int, tag: int, blob: bytes) -> pa.RecordBatch:
    columns = dict(zip(SCHEMA.names, ([key], [0], [tag], [0], [0], [blob]), strict=True))
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _without_reports(batches: Batches) -> tuple[Batches, list[dict[str, Any]]]:
    """The records alone, and a list that fills with the reports among them as they go by."""
    reports: list[dict[str, Any]] = []

    def records() -> Batches:
        for batch in batches:
            is_report = pa.compute.equal(batch.column("tag"), _REPORT_TAG)
            reports.extend(json.loads(blob.as_py()) for blob in batch.filter(is_report).column("blob"))
            yield batch.filter(pa.compute.invert(is_report))

    return records(), reports


def _reported(report: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([json.dumps(report).encode()], pa.binary())], schema=REPORT_SCHEMA)


def _attempt() -> str:
    """A name that no other attempt of any task has."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return f"{context.taskAttemptId() if context else 0}-{os.getpid()}"
