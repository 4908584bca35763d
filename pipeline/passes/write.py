"""The second pass: encode every impression and context, group them by context, write the files of the dataset."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.aliccp.action_log import acted_ids
from pipeline.audit import tally as audit
from pipeline.audit.statistics import Statistics
from pipeline.audit.tally import GRAIN, Tally
from pipeline.chunks.chunk import SCOPE_OF
from pipeline.chunks.fingerprints import SplitFingerprints
from pipeline.chunks.reasons import REASONS
from pipeline.chunks.sources import PERIODS, SourceFile
from pipeline.contexts.buckets import Buckets, buckets_of
from pipeline.contexts.encode import encode
from pipeline.contexts.group import ORDINAL, REJECT_REASON, Selection, select, whole_groups
from pipeline.contexts.records import RECORD_SPARK_SCHEMA, layout_of
from pipeline.contexts.rows import rows_of
from pipeline.dataset.lookup_table import Lookup, lookup_of
from pipeline.dataset.manifest import LABELS, SPLITS, RowGroup
from pipeline.dataset.schema import schema_of
from pipeline.features.fields import Catalogue
from pipeline.passes.count import CountResult
from pipeline.passes.duplicates import load_positions, reject_repeats
from pipeline.passes.input import InputLog, TaskInput
from pipeline.passes.job import Job
from pipeline.passes.reports import (
    REPORT,
    DataReport,
    QuarantineReport,
    attempt_name,
    report_row,
    reports_of,
)
from pipeline.spark import running
from pipeline.spark.running import Batches
from pipeline.spark.workers import freeze_imports
from pipeline.storage.commit import QUARANTINE_FOLDER, Staging
from pipeline.storage.parquet_files import PartWriter, quarantine_batch, write_quarantine
from pipeline.storage.staged_file import StagedFile

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def write_files(
    spark: "SparkSession", job: Job, log: InputLog, counted: CountResult, tables: Callable[[], Path], staging: Staging
) -> tuple[list[DataReport], list[QuarantineReport]]:
    """Run the second pass; return the reports of the partitions, and of the files of lines rejected before grouping."""
    rows = job.settings.rows
    writing = WriteTasks(
        log.input, job.catalogue, _buckets(job, counted.tally), log.sources, counted.fingerprints, tables, staging,
        rows.max_impressions, rows.impressions_per_row_group, job.with_daction,
    )  # fmt: skip
    frame, num_tasks = records_of(log.input.frame(spark), writing), len(log.splits) + len(writing.buckets)
    frame, num_bytes = frame.mapInArrow(writing.write, REPORT), sum(source.bytes for source in job.sources)
    return reports_of(running.collect(frame, "pass 2 of 2: writing rows", num_tasks, "tasks", num_bytes))


@dataclass(frozen=True)
class WriteTasks:
    """The tasks of the second pass: encode; after the shuffle, group and write."""

    input: TaskInput
    catalogue: Catalogue
    buckets: Buckets
    sources: tuple[SourceFile, ...]  # by ordinal
    first_pass: SplitFingerprints  # of what it read
    tables: Callable[[], Path]  # where this host has the lookup tables and the action ids
    staging: Staging
    max_impressions: int
    impressions_per_row_group: int
    with_daction: bool

    def encode(self, batches: Batches) -> Batches:
        """Encode the lines of a task's rows of `TaskInput.frame` → records.RECORD_SCHEMA.

        Raises InputError for a file that the first pass has read otherwise.
        """
        directory = self.tables()
        lookup = Lookup.load(directory)
        repeated_X = load_positions(directory)
        layouts = {table: layout_of(self.catalogue, scope) for table, scope in SCOPE_OF.items()}
        # Impressions of event logs have no period, and already all their labels.
        paths = {period: actions_path(directory, period) for period in PERIODS if self.with_daction}
        acted = {period: np.load(path, mmap_mode="r") for period, path in paths.items() if path.exists()}
        fingerprints = SplitFingerprints()
        for chunk in self.input.chunks(batches):
            fingerprints.add(chunk)
            reject_repeats(chunk, repeated_X)
            yield from encode(chunk, layouts[chunk.source.table], lookup, self.buckets, acted.get(chunk.source.period))
        fingerprints.compare(self.first_pass, self.sources)

    def write(self, batches: Batches) -> Batches:
        """Write the sorted records of a partition → the report of its file; a partition may be empty."""
        for key, mine in batches_by_bucket(batches):
            split, number = self.buckets.file_of(key)
            name = self._new_name(split, number)
            if split == "quarantine":
                yield report_row(self._write_rejected(name, number, mine))
            else:
                yield report_row(self._write_rows(name, split, number, mine))

    def _new_name(self, split: str, number: int) -> str:
        return f"{split}-{number:05d}-{attempt_name()}"

    def _write_rejected(self, name: str, number: int, batches: Batches) -> QuarantineReport:
        path = self.staging.path(name)
        written = write_quarantine(path, (self._quarantine_batch(batch) for batch in batches))
        file = self.staging.seal(written.file, QUARANTINE_FOLDER, f"part-{number:05d}")
        return QuarantineReport(number, file, written.num_lines, written.examples)

    def _write_rows(self, name: str, split: str, number: int, batches: Batches) -> DataReport:
        writer = PartWriter(self.staging.path(name), self._schema, self.impressions_per_row_group, self.with_daction)
        found = GroupFindings()
        for selected in self._selected(SPLITS.index(split), batches, found):
            rows = rows_of(selected, self.catalogue, self._schema)
            found.statistics.add(rows.table, self.catalogue, rows.key_N, rows.counts)
            writer.add(rows.table, rows.counts)
        file = writer.finish()
        if file:
            file = self.staging.seal(file, split, f"part-{number:05d}")
        return self._report(name, split, number, file, tuple(writer.row_groups), found)

    def _report(
        self,
        name: str,
        split: str,
        number: int,
        file: StagedFile | None,
        row_groups: tuple[RowGroup, ...],
        found: "GroupFindings",
    ) -> DataReport:
        rejects = np.concatenate(found.rejects)
        has_rejects = len(rejects) > 0
        num_rejects = np.bincount(rejects[:, ORDINAL], minlength=len(self.sources)).tolist() if has_rejects else ()
        return DataReport(
            split,
            number,
            file,
            row_groups,
            found.tally,
            found.statistics.report(lambda what, array: self.staging.save_array(f"{name}-{what}", array)),
            self.staging.save_array(f"{name}-rejects", rejects) if has_rejects else "",
            tuple(num_rejects),
        )

    @property
    def _schema(self) -> pa.Schema:
        labels = [label for label in LABELS if self.with_daction or label != "daction"]
        return schema_of(self.catalogue.fields, labels, self.catalogue.timed)

    def _selected(self, split: int, batches: Batches, found: "GroupFindings") -> Iterator[Selection]:
        """Yield the rows of each batch of whole groups that has any; add its counts and rejected lines to `found`."""
        for batch in whole_groups(batches):
            selected = select(batch, self.max_impressions)
            self._count(found.tally, split, selected)
            found.rejects.append(selected.rejects)
            if len(selected.context_N):
                yield selected

    def _count(self, tally: Tally, split: int, selected: Selection) -> None:
        tally.add(split, "contexts", "written", selected.num_contexts)
        tally.add(split, "contexts", "without_impressions", selected.num_contexts_alone)
        tally.add(split, "impressions", "written", len(selected.impressions))
        ordinal_X, offset_X, reason_X = selected.rejects.T
        for ordinal, reason in np.unique(selected.rejects[:, [ORDINAL, REJECT_REASON]], axis=0).tolist():
            chosen_X = (ordinal_X == ordinal) & (reason_X == reason)
            grain, name = GRAIN[self.sources[ordinal].table], REASONS[reason]
            tally.add(split, grain, name, int(np.count_nonzero(chosen_X)))
            tally.note_first(name, ordinal, int(offset_X[chosen_X].min()))

    def _quarantine_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = [self.sources[ordinal].name for ordinal in batch.column("ordinal").to_pylist()]
        reasons = [REASONS[tag] for tag in batch.column("tag").to_pylist()]
        return quarantine_batch(names, batch.column("offset").to_pylist(), reasons, batch.column("blob").to_pylist())


@dataclass
class GroupFindings:
    """The counts, statistics and rejected lines of a partition."""

    tally: Tally = field(default_factory=Tally)
    statistics: Statistics = field(default_factory=Statistics)
    rejects: list[np.ndarray] = field(default_factory=list)


def records_of(begin: "DataFrame", writing: WriteTasks) -> "DataFrame":
    """Encode the log, one row per record (RECORD_SCHEMA), one partition per output file, in the order of contexts.

    The order ends in (ordinal, offset), because ties would otherwise come in the order of arrival.
    """
    records = begin.mapInArrow(writing.encode, RECORD_SPARK_SCHEMA)
    partitioned = records.repartition(len(writing.buckets), "bucket")
    return partitioned.sortWithinPartitions("bucket", "hash", "tag", "ordinal", "offset")


def actions_path(directory: Path, period: str) -> Path:
    """Return the path of the sorted ids of impressions with a counted action."""
    return directory / f"actions_{period}.npy"


def _buckets(job: Job, scanned: Tally) -> Buckets:
    train, validation, test = (scanned.of(split, "impressions", "good") for split in SPLITS)
    num_rejected = sum(
        scanned.of(split, grain, reason) for split in SPLITS for grain in audit.GRAIN.values() for reason in REASONS[1:]
    )
    per_file = job.settings.rows.impressions_per_file
    return buckets_of((train, validation, test), num_rejected, per_file, job.settings.seed)


def save_tables(job: Job, counted: CountResult, directory: Path) -> list[Path]:
    """Write the lookup tables, duplicates and action ids that the second pass reads; return the files."""
    paths = [*lookup_of(counted.vocabularies).save(directory), *counted.repeats.save(directory)]
    for period in PERIODS if job.with_daction and job.events is None else ():
        paths.append(actions_path(directory, period))
        np.save(paths[-1], acted_ids(job.sources, period, job.settings.labels.daction))
    return paths


def batches_by_bucket(batches: Batches) -> Iterator[tuple[int, Batches]]:
    """Yield (bucket key, its batches) of a partition sorted by bucket; use up the batches of one before the next."""
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
