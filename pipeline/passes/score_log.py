"""Score a raw log in one pass: encode by the model's vocabularies, bring contexts together, score, write.

    input ─ScoreTasks.encode()─▶ records ─shuffle by context─▶ ScoreTasks.write() ─▶ files of scores, quarantine

Preprocessing counts ids in a pass of its own. Here the vocabularies are there already, so the log is read once; what its
tasks counted crosses the shuffle with the rejected lines.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.audit.tally import Tally
from pipeline.chunks.chunk import SCOPE_OF
from pipeline.chunks.fingerprints import SplitFingerprints
from pipeline.chunks.sources import SKELETON, SourceFile
from pipeline.contexts.buckets import Buckets
from pipeline.contexts.encode import encode
from pipeline.contexts.records import layout_of, record_batch
from pipeline.contexts.rows import rows_of
from pipeline.dataset.lookup_table import Lookup, lookup_of
from pipeline.dataset.manifest import SPLITS
from pipeline.dataset.schema import schema_of
from pipeline.features.vocabulary import Vocabulary
from pipeline.passes.input import InputLog
from pipeline.passes.job import Job
from pipeline.passes.reports import REPORT, DataReport, QuarantineReport, ScanReport, report_row, reports_of, scans_of
from pipeline.passes.scorer import TrainedModel, opened, score_schema, scores_of
from pipeline.passes.write import GroupFindings, WriteTasks, batches_by_bucket, records_of
from pipeline.spark import running
from pipeline.spark.hashes import partition_keys
from pipeline.spark.running import Batches
from pipeline.storage.commit import Staging
from pipeline.storage.parquet_files import PartWriter
from pipeline.storage.scores import SCORES_FOLDER

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: The tag of a record with what a task counted; the tags of rejected lines are their reasons.
SCAN_TAG = 127
_BYTES_PER_FILE = 64 << 20  # of the impressions' lines
_GZIP_FACTOR = 4
ROWS_PER_SCORE_GROUP = 1 << 17


@dataclass(frozen=True)
class ScoredLog:
    """What came of the pass."""

    scan: ScanReport  # what all tasks counted
    reports: list[DataReport]
    quarantine: list[QuarantineReport]  # of the lines rejected before grouping


def score_log(
    spark: "SparkSession",
    job: Job,
    log: InputLog,
    model: TrainedModel,
    vocabularies: list[Vocabulary],
    most: int,
    staging: Staging,
) -> ScoredLog:
    """Run the pass over `log`, giving the model about `most` impressions at once."""

    def save(directory: Path) -> list[Path]:
        return lookup_of(vocabularies).save(directory)

    buckets = score_buckets(job.sources, job.settings.seed)
    with running.share_files(spark, save) as tables:
        scoring = ScoreTasks(
            log.input, job.catalogue, buckets, log.sources, SplitFingerprints(), tables, staging,
            job.settings.rows.max_impressions, ROWS_PER_SCORE_GROUP, False, model, most,
        )  # fmt: skip
        frame, num_tasks = records_of(log.input.frame(spark), scoring), len(log.splits) + len(buckets)
        frame, num_bytes = frame.mapInArrow(scoring.write, REPORT), sum(source.bytes for source in job.sources)
        table = running.collect(frame, "scoring the log", num_tasks, "tasks", num_bytes)
    return ScoredLog(scans_of(table), *reports_of(table))


def score_buckets(sources: Sequence[SourceFile], seed: int) -> Buckets:
    """Make a file for about every 64 MB of the impressions' lines of each split that is there, and one for rejected lines.

    `sources` are the raw files. A context is in one of the files, whichever its lines stand in.
    """
    num_bytes = dict.fromkeys(SPLITS, 0)
    for source in sources:
        if source.table in (SKELETON, "impressions"):
            num_bytes[split_of_period(source.period)] += source.bytes * (_GZIP_FACTOR if source.compressed else 1)
    train, validation, test = (-(-number // _BYTES_PER_FILE) for number in num_bytes.values())
    return Buckets((train, validation, test), 1, seed, partition_keys(train + validation + test + 1))


def split_of_period(period: str) -> str:
    """Return the split that the lines of a period are counted under; a log without periods is all train."""
    return "test" if period == "test" else "train"


def folder_of(split: str, sources: Sequence[SourceFile]) -> str:
    """Return the folder of a split's scores: of its own, in Hive's way, where the log says which period it is."""
    periods = {source.period for source in sources}
    return SCORES_FOLDER if "" in periods else f"{SCORES_FOLDER}/period={split}"


@dataclass(frozen=True)
class ScoreTasks(WriteTasks):
    """The tasks of the pass: encode, as in preprocessing; after the shuffle, group, score and write."""

    model: TrainedModel
    most: int  # impressions that the model is given at once

    def encode(self, batches: Batches) -> Batches:
        """Encode the lines of a task's rows of `TaskInput.frame` → records.RECORD_SCHEMA, and a record of its counts."""
        lookup = Lookup.load(self.tables())
        layouts = {table: layout_of(self.catalogue, scope) for table, scope in SCOPE_OF.items()}
        tally, fingerprints = Tally(), SplitFingerprints()
        for chunk in self.input.chunks(batches):
            tally.count_chunk(chunk)
            fingerprints.add(chunk)
            yield from encode(chunk, layouts[chunk.source.table], lookup, self.buckets, None)
        yield self._scan_record(ScanReport(tally, tuple(fingerprints.to_rows())))

    def write(self, batches: Batches) -> Batches:
        """Score the sorted records of a partition → the report of its file; of the last bucket, also what was counted."""
        for key, mine in batches_by_bucket(batches):
            split, number = self.buckets.file_of(key)
            if split != "quarantine":
                yield report_row(self._write_rows(self._new_name(split, number), split, number, mine))
                continue
            scans: list[ScanReport] = []
            rejected = _without_scans(mine, scans)
            if (first := next(rejected, None)) is not None:
                yield report_row(self._write_rejected(self._new_name(split, number), number, chain([first], rejected)))
            yield report_row(ScanReport.sum_of(scans))

    def _write_rows(self, name: str, split: str, number: int, batches: Batches) -> DataReport:
        schema = score_schema(self.model, self.catalogue.timed)
        writer = PartWriter(self.staging.path(name), schema, self.impressions_per_row_group, self.with_daction)
        found, scorer = GroupFindings(), opened(self.model.open)
        row_schema = schema_of(self.catalogue.fields, [], self.catalogue.timed)
        for selected in self._selected(SPLITS.index(split), batches, found):
            rows = rows_of(selected, self.catalogue, row_schema)
            found.statistics.add(rows.table, self.catalogue, rows.key_N, rows.counts)
            for scores in scores_of(rows.table, scorer, schema, self.most):
                writer.add(scores, counts_of(scores))
        file = writer.finish()
        if file:
            file = self.staging.seal(file, folder_of(split, self.sources), f"part-{number:05d}")
        return self._report(name, split, number, file, tuple(writer.row_groups), found)

    def _scan_record(self, report: ScanReport) -> pa.RecordBatch:
        key = self.buckets.keys[self.buckets.first(len(SPLITS))]
        numbers = {"bucket": key, "hash": 0, "tag": SCAN_TAG, "ordinal": 0, "offset": 0}
        text = np.frombuffer(json.dumps(report.to_json()).encode(), np.uint8)
        columns = {name: np.array([number]) for name, number in numbers.items()}
        columns |= {"bucket": np.array([key], np.int32), "tag": np.array([SCAN_TAG], np.int8)}
        return record_batch(columns | {"ordinal": np.zeros(1, np.int32)}, np.array([0, len(text)]), text)


def counts_of(scores: pa.Table) -> np.ndarray:
    """Return what PartWriter counts of a table of scores: one impression a row, and no labels."""
    counts = np.zeros((scores.num_rows, 4), np.int64)
    counts[:, 0] = 1
    return counts


def _without_scans(batches: Batches, scans: list[ScanReport]) -> Batches:
    """Yield the rejected lines of the last bucket; add what tasks counted to `scans`."""
    for batch in batches:
        is_scan_R = batch.column("tag").to_numpy() == SCAN_TAG
        for blob in batch.column("blob").filter(pa.array(is_scan_R)).to_pylist():
            scans.append(ScanReport.from_json(json.loads(blob)))
        rejected = batch.filter(pa.array(~is_scan_R))
        if rejected.num_rows:
            yield rejected
