"""The second pass: encode every impression and context, group them by context, write the files of the dataset."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.aliccp.action_log import acted_ids
from pipeline.audit import tally as audit
from pipeline.audit.statistics import Statistics
from pipeline.audit.tally import GRAIN, Tally
from pipeline.chunks.chunk import SCOPE_OF
from pipeline.chunks.reasons import REASONS
from pipeline.chunks.sources import PERIODS, InputSplit, SourceFile
from pipeline.contexts.buckets import Buckets, buckets_of
from pipeline.contexts.encode import encode
from pipeline.contexts.group import ORDINAL, REJECT_REASON, Selected, grouped, select
from pipeline.contexts.records import SPARK_SCHEMA, layout_of
from pipeline.contexts.rows import rows_of
from pipeline.dataset.manifest import LABELS, SPLITS
from pipeline.dataset.schema import schema_of
from pipeline.features.lookup_table import Lookup, lookup_of
from pipeline.passes import duplicates
from pipeline.passes.input import Reader, chunks_of, input_frame
from pipeline.passes.job import Counted, Job
from pipeline.passes.reports import REPORT, Batches, attempt_name, report_row
from pipeline.spark import running
from pipeline.spark.workers import freeze_imports
from pipeline.storage.commit import QUARANTINE, Staging
from pipeline.storage.parquet_files import PartWriter, quarantine_batch, write_quarantine

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def write(
    spark: "SparkSession", job: Job, scanned: Tally, tables: Callable[[], Path], staging: Staging
) -> list[dict[str, Any]]:
    """The second pass: encode, group, write; the report of each file."""
    rows = job.settings.rows
    writing = Writing(
        job.splits, job.reader, _buckets(job, scanned), job.logs, tables, staging,
        rows.max_impressions, rows.impressions_per_row_group, job.with_daction,
    )  # fmt: skip
    frame, num_tasks = records_of(input_frame(spark, job), writing), len(writing.splits) + len(writing.buckets)
    table = running.collect(frame.mapInArrow(writing.write, REPORT), "write", num_tasks, "tasks")
    return [json.loads(report.as_py()) for report in table.column("report")]


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

    def write(self, batches: Batches) -> Batches:
        """Sorted records of a partition → the report of its file; a partition may be empty."""
        for key, mine in _by_bucket(batches):
            split, number = self.buckets.place(key)
            name = f"{split}-{number:05d}-{attempt_name()}"
            if split == "quarantine":
                staged = write_quarantine(self.staging.path(name), (self._quarantined(batch) for batch in mine))
                reports = [self.staging.hand_in(staged, QUARANTINE, f"part-{number:05d}")]
            else:
                found, file = self._write_rows(name, split, number, mine)
                reports = [self._report(name, found) | file]
            for report in reports:
                yield report_row(report | {"split": split, "number": number})

    def _write_rows(self, name: str, split: str, number: int, batches: Batches) -> tuple["Found", dict[str, Any]]:
        """Write one file; what was found, and the file as `Store.place` needs it, if there was a row."""
        writer = PartWriter(self.staging.path(name), self._schema, self.impressions_per_row_group, self.with_daction)
        found = Found()
        for selected in self._selected(SPLITS.index(split), batches, found):
            rows = rows_of(selected, self.reader.catalogue, self._schema)
            found.statistics.add(rows.table, self.reader.catalogue, rows.key_N, rows.count_NK)
            writer.add(rows.table, rows.count_NK)
        staged = writer.finish()
        return found, {"file": self.staging.hand_in(staged, split, f"part-{number:05d}")} if staged else {}

    @property
    def _schema(self) -> pa.Schema:
        labels = [label for label in LABELS if self.with_daction or label != "daction"]
        return schema_of(self.reader.catalogue.fields, labels, self.reader.catalogue.timed)

    def _selected(self, split: int, batches: Batches, found: "Found") -> Iterator[Selected]:
        """The rows of each batch of whole groups that has any; what else is found is added to `found`."""
        for batch in grouped(batches):
            selected = select(batch, self.max_impressions)
            self._count(found.tally, split, selected)
            found.rejects.append(selected.rejects)
            if len(selected.context_N):
                yield selected

    def _report(self, name: str, found: "Found") -> dict[str, Any]:
        report: dict[str, Any] = {"tally": found.tally.to_json()}
        report |= found.statistics.report(lambda what, array: self.staging.keep(f"{name}-{what}", array))
        rejects = np.concatenate(found.rejects)
        if len(rejects):
            report["rejects"] = self.staging.keep(f"{name}-rejects", rejects)
            report["num_rejects"] = np.bincount(rejects[:, ORDINAL], minlength=len(self.sources)).tolist()
        return report

    def _count(self, tally: Tally, split: int, selected: Selected) -> None:
        tally.add(split, "contexts", "written", selected.num_contexts)
        tally.add(split, "contexts", "without_impressions", selected.num_contexts_alone)
        tally.add(split, "impressions", "written", len(selected.impression_I))
        ordinal_X, offset_X, reason_X = selected.rejects.T
        for ordinal, reason in np.unique(selected.rejects[:, [ORDINAL, REJECT_REASON]], axis=0).tolist():
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


def records_of(begun: "DataFrame", writing: Writing) -> "DataFrame":
    """One row a record (records.SCHEMA): each output file's in one partition, sorted in the order of contexts.

    The order ends in (ordinal, offset): without them, ties would come in the order of arrival.
    """
    records = begun.mapInArrow(writing.encode, SPARK_SCHEMA)
    partitioned = records.repartition(len(writing.buckets), "bucket")
    return partitioned.sortWithinPartitions("bucket", "hash", "tag", "ordinal", "offset")


def actions_path(directory: Path, period: str) -> Path:
    """Where the sorted ids of impressions with a counted action lie."""
    return directory / f"actions_{period}.npy"


def _buckets(job: Job, scanned: Tally) -> Buckets:
    train, validation, test = (scanned.of(split, "impressions", "good") for split in SPLITS)
    num_rejected = sum(
        scanned.of(split, grain, reason) for split in SPLITS for grain in audit.GRAIN.values() for reason in REASONS[1:]
    )
    per_file = job.settings.rows.impressions_per_file
    return buckets_of((train, validation, test), num_rejected, per_file, job.settings.seed)


def _save_tables(job: Job, counted: Counted, directory: Path) -> list[Path]:
    """Lookup tables, duplicates and action ids, for the second pass."""
    paths = [*lookup_of(counted.vocabularies).save(directory), *counted.repeats.save(directory)]
    for period in PERIODS if job.with_daction and not job.labelled else ():
        paths.append(actions_path(directory, period))
        np.save(paths[-1], acted_ids(job.sources, period, job.settings.labels.daction))
    return paths


def _by_bucket(batches: Batches) -> Iterator[tuple[int, Batches]]:
    """(bucket key, its batches) of a partition sorted by bucket; each must be used up before the next."""
    freeze_imports()
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
