"""The chain: raw logs → dataset. Each step is a function below, called in order by `preprocess`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.aliccp.reader import ChunkReader
from pipeline.aliccp.spark_lines import line_reader
from pipeline.audit.tally import Tally
from pipeline.chunks.reasons import rules_of
from pipeline.config.preprocess import FAIL, SPARK, PreprocessSettings, settings_xxh3
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from pipeline.events.id_texts import add_id_texts
from pipeline.features.vocabulary import Vocabulary
from pipeline.passes.count import count
from pipeline.passes.input import input_frame
from pipeline.passes.job import Counted, Job
from pipeline.passes.publish import assembled, write_run
from pipeline.passes.quarantine import quarantine
from pipeline.passes.write import _save_tables, write
from pipeline.spark import running
from pipeline.spark import session as sparks
from pipeline.spark.exceptions import plain_errors
from pipeline.storage import commit
from pipeline.storage.commit import Staging
from pipeline.storage.lock import locked

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


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
        counted = count(spark, job, input_frame(spark, job))
    counted.repeats.move(counted.tally)
    _stop_at_failures(job, counted.tally)
    with _clocked(seconds, "write"), running.shared(spark, partial(_save_tables, job, counted)) as tables:
        reports = write(spark, job, counted.tally, tables, staging)
        counted = replace(counted, vocabularies=_with_id_texts(spark, job, counted, tables))
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
    with plain_errors():
        found = label(
            spark, job.events, events, job.catalogue, settings.labels.daction, settings.checks,
            num_partitions, staging.tables,
        )  # fmt: skip
    return replace(job, labelled=found)


def _with_id_texts(spark: "SparkSession", job: Job, counted: Counted, tables: Callable[[], Path]) -> list[Vocabulary]:
    """Return the vocabularies, those of an event log with the original strings of their ids."""
    events = job.settings.source.events
    if job.labelled is None or events is None:
        return counted.vocabularies
    return add_id_texts(spark, job.labelled.log, events, job.catalogue, counted.vocabularies, tables)


def looked_at(spark: "SparkSession", job: Job) -> Job:
    """Before the passes over what only Spark can open: where the lines begin. Other logs are opened by the tasks."""
    if job.settings.source.reader != SPARK:
        return job
    reader = ChunkReader.of(job.catalogue, job.settings)
    return replace(job, lines=line_reader(input_frame(spark, job), reader, job.splits))


def _stop_at_failures(job: Job, tally: Tally) -> None:
    """Raise InputError for the first line in the order of the log whose reason is set to fail."""
    failing = [(where, reason) for reason, where in tally.first.items() if getattr(job.settings.checks, reason) == FAIL]
    if failing:
        (ordinal, offset), reason = min(failing)
        mild = "keep" if reason in ("feature_count_mismatch", "conversion_without_click") else "quarantine"
        raise InputError(
            f"{job.logs[ordinal].path}, byte {offset}: {reason} ({rules_of(job.settings.source.name)[reason]}), and checks.{reason}=fail stops there; "
            f"mend the line, or set checks.{reason}={mild}."
        )


@contextmanager
def _clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
