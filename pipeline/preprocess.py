"""The chain: raw logs → dataset. Each step is a function below, called in order by `preprocess`."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.aliccp.action_log import acted_ids
from pipeline.aliccp.parse import REASONS, RULES
from pipeline.aliccp.spark_lines import PICKED, Picking, line_reader, lines
from pipeline.audit import tally as audit
from pipeline.audit.tally import Tally
from pipeline.chunks.chunk import ChunkReader
from pipeline.chunks.sources import PERIODS
from pipeline.config.preprocess import FAIL, SPARK, PreprocessSettings, settings_xxh3
from pipeline.contexts.buckets import Buckets, buckets_of, partition_keys
from pipeline.contexts.records import SPARK_SCHEMA
from pipeline.dataset.manifest import SPLITS, InputError, Manifest
from pipeline.events.id_texts import texted
from pipeline.features.lookup_table import lookup_of
from pipeline.passes.count import count
from pipeline.passes.job import Counted, Job
from pipeline.passes.publish import assembled, write_run
from pipeline.passes.tasks import REPORT, Rereading, Writing, WritingPicked, actions_path
from pipeline.spark import session as sparks
from pipeline.storage import commit
from pipeline.storage.commit import Staging
from pipeline.storage.lock import locked

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_REJECTS_PER_SLICE = 1_000_000


def preprocess(settings: PreprocessSettings) -> Manifest:
    """Write the dataset that `settings` describe, or find it finished; its manifest.

    Raises InputError for a mistake of the user or of the input, before Spark starts wherever it can be seen by then.
    """
    job = Job.of(settings)
    if done := _finished(job):
        commit.tidy(job.out, settings.grace_hours)
        return done
    with locked(job.out):
        if done := _finished(job):
            return done
        with commit.staging(job.out, settings.staging) as staging:
            return _written(job, staging)


def _finished(job: Job) -> Manifest | None:
    """The dataset if it is there already; InputError if another one is, and may not be replaced."""
    existing = _existing(job)
    if existing is None:
        return None
    wanted = settings_xxh3(job.determining)
    same_sources = existing.sources == job.manifest_sources
    if existing.settings_xxh3 == wanted and same_sources:
        print(f"{job.out.location} is already there, with these settings and sources; nothing to do.", flush=True)
        return existing
    if not job.settings.overwrite:
        what = "other settings" if same_sources else "other source files"
        raise InputError(
            f"out={job.out.location} holds a finished dataset made with {what}; choose another out, or overwrite=true to replace it."
        )
    return None


def _existing(job: Job) -> Manifest | None:
    """The manifest that is there; a damaged one may be replaced like any other."""
    try:
        return commit.existing_manifest(job.out)
    except InputError:
        if job.settings.overwrite:
            return None
        raise


def _written(job: Job, staging: Staging) -> Manifest:
    """Run the steps and commit."""
    started, begun_at = time.time(), time.monotonic()
    seconds: dict[str, float] = {}
    with _clocked(seconds, "spark"):
        spark = sparks.start_spark(job.settings.spark)
    with _clocked(seconds, "label"):
        job = looked_at(spark, labelled(spark, job, staging))
    with _clocked(seconds, "count"):
        counted = count(spark, job, _input(spark, job))
    counted.repeats.move(counted.tally)
    _stop_at_failures(job, counted.tally)
    with _clocked(seconds, "write"), sparks.shared(spark, partial(_save_tables, job, counted)) as tables:
        reports = write(spark, job, counted.tally, tables, staging)
        counted = texted(spark, job, counted, tables)
    written = Tally()
    for report in reports:
        written.merge(Tally.from_json(report.get("tally", {"counts": {}, "first": {}})))
    _stop_at_failures(job, written)
    with _clocked(seconds, "quarantine"):
        reread = quarantine(spark, job, reports, staging)
    manifest = assembled(job, counted, written, reports, reread, staging)
    seconds["all"] = time.monotonic() - begun_at
    write_run(job, spark, manifest, started, seconds)
    commit.publish(job.out, manifest, _existing(job))
    commit.sweep(job.out, job.settings.grace_hours)
    return manifest


def labelled(spark: "SparkSession", job: Job, staging: Staging) -> Job:
    """Before the passes over an event log: which impression each action belongs to. Other logs come with their labels."""
    settings, events = job.settings, job.settings.source.events
    if job.events is None or events is None:
        return job
    from pipeline.events.label import label  # it imports pyspark

    num_bytes = sum(source.bytes for source in job.sources)
    num_partitions = max(spark.sparkContext.defaultParallelism, -(-num_bytes // settings.source.split_bytes))
    with sparks.sentences():
        found = label(
            spark, job.events, events, job.catalogue, settings.labels.daction, settings.checks,
            num_partitions, staging.tables,
        )  # fmt: skip
    return replace(job, labelled=found)


def looked_at(spark: "SparkSession", job: Job) -> Job:
    """Before the passes over what only Spark can open: where the lines begin. Other logs are opened by the tasks."""
    if job.settings.source.reader != SPARK:
        return job
    reader = ChunkReader.of(job.catalogue, job.settings)
    return replace(job, lines=line_reader(_input(spark, job), reader, job.splits))


def _input(spark: "SparkSession", job: Job) -> "DataFrame":
    """What a pass over the log begins with: the numbers of the input splits, or the lines themselves."""
    if job.settings.source.reader != SPARK:
        return sparks.numbers(spark, len(job.splits))
    sources = list(dict.fromkeys(split.source for split in job.splits))
    return lines(spark, sources, job.settings.source.split_bytes)


def write(
    spark: "SparkSession", job: Job, scanned: Tally, tables: Callable[[], Path], staging: Staging
) -> list[dict[str, Any]]:
    """The second pass: encode, group, write; the report of each file."""
    rows = job.settings.rows
    writing = Writing(
        job.splits, job.reader, _buckets(job, scanned), job.logs, tables, staging,
        rows.max_impressions, rows.impressions_per_row_group, job.with_daction, rows.scatter_chunks,
    )  # fmt: skip
    frame, num_tasks = records_of(_input(spark, job), writing), len(writing.splits) + len(writing.buckets)
    if rows.scatter_chunks:
        frame, num_tasks = (
            _shuffled(frame.mapInArrow(writing.scatter, SPARK_SCHEMA), writing),
            num_tasks + len(writing.buckets),
        )
    table = sparks.collect(frame.mapInArrow(writing.write, REPORT), "write", num_tasks, "tasks")
    return [json.loads(report.as_py()) for report in table.column("report")]


def records_of(begun: "DataFrame", writing: Writing) -> "DataFrame":
    """One row a record (records.SCHEMA), each output file's in one partition, in the order of contexts."""
    return _shuffled(begun.mapInArrow(writing.encode, SPARK_SCHEMA), writing)


def _shuffled(frame: "DataFrame", writing: Writing) -> "DataFrame":
    """The same records, each output file's in one partition, sorted.

    The order ends in (ordinal, offset): without them, ties would come in the order of arrival.
    """
    partitioned = frame.repartition(len(writing.buckets), "bucket")
    return partitioned.sortWithinPartitions("bucket", "hash", "tag", "ordinal", "offset")


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
        frame = _input(spark, job).mapInArrow(picking.pick, PICKED).repartition(len(slices), "slice")
        frame = frame.sortWithinPartitions("slice", "offset").mapInArrow(WritingPicked(picking).write, REPORT)
    else:
        rereading = Rereading(job.logs, slices, rejects, staging)
        frame = sparks.numbers(spark, len(slices)).mapInArrow(rereading.reread, REPORT)
    table = sparks.collect(frame, "quarantine", len(slices), "tasks")
    found = [json.loads(report.as_py()) for report in table.column("report")]
    return sorted(found, key=lambda report: int(report["number"]))


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


def _stop_at_failures(job: Job, tally: Tally) -> None:
    """Raise InputError for the first line in the order of the log whose reason is set to fail."""
    failing = [(where, reason) for reason, where in tally.first.items() if getattr(job.settings.checks, reason) == FAIL]
    if failing:
        (ordinal, offset), reason = min(failing)
        mild = "keep" if reason in ("feature_count_mismatch", "conversion_without_click") else "quarantine"
        raise InputError(
            f"{job.logs[ordinal].path}, byte {offset}: {reason} ({RULES[reason]}), and checks.{reason}=fail stops there; "
            f"mend the line, or set checks.{reason}={mild}."
        )


@contextmanager
def _clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
