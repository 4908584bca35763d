"""The chain: raw logs → dataset. Each step is a function below, called in order by `preprocess`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.audit.tally import Tally
from pipeline.chunks.reasons import rules_of
from pipeline.config.preprocess import FAIL, PreprocessSettings, settings_xxh3
from pipeline.dataset.manifest import SPLITS, Manifest
from pipeline.errors import InputError
from pipeline.events.id_texts import add_id_texts
from pipeline.features.vocabulary import Vocabulary
from pipeline.passes.count import CountResult, count
from pipeline.passes.input import InputLog, open_log
from pipeline.passes.job import Job
from pipeline.passes.publish import assemble, merge_tallies, write_run
from pipeline.passes.quarantine import quarantine
from pipeline.passes.unchanged import (
    changed_since,
    check_sizes,
    check_unchanged,
    fingerprints_by_tasks,
    fingerprints_of_input,
)
from pipeline.passes.write import save_tables, write_files
from pipeline.spark import running
from pipeline.spark import session as sparks
from pipeline.spark.exceptions import plain_errors
from pipeline.storage import commit
from pipeline.storage.commit import Staging
from pipeline.storage.lock import dataset_lock
from pipeline.telemetry import enter_stage
from pipeline.terminal import stage

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def preprocess(settings: PreprocessSettings) -> Manifest:
    """Write the dataset that `settings` describe, unless it is finished already; return its manifest.

    Raises InputError for a mistake in the settings or the input, before Spark starts where it can be seen by then.
    """
    with plain_errors():
        job = Job.of(settings)
    if done := _finished(job):
        commit.clean_up(job.out, settings.grace_hours)
        return done
    with dataset_lock(job.out):
        if done := _finished(job):
            return done
        with commit.open_staging(job.out, settings.staging) as staging, plain_errors():
            return _run_passes(job, staging)


def _finished(job: Job) -> Manifest | None:
    """Return the manifest if the dataset is there already. Raises InputError if another one is in its place."""
    existing = _existing(job)
    if existing is None:
        return None
    wanted = settings_xxh3(job.determining)
    there = [(source.name, source.bytes) for source in existing.sources]
    same_sources = there == [(source.name, source.bytes) for source in job.sources]
    changed = changed_since(job, existing) if existing.settings_xxh3 == wanted and same_sources else None
    if changed is None and existing.settings_xxh3 == wanted and same_sources:
        print(f"{job.out.location} is already there, with these settings and sources; nothing to do.", flush=True)
        return existing
    if not job.settings.overwrite:
        what = "other settings" if same_sources else "other source files"
        what = f"another {changed.name} of the same size" if changed else what
        raise InputError(
            f"out={job.out.location} holds a finished dataset made with {what}; choose another out, or overwrite=true "
            "to replace it."
        )
    return None


def _existing(job: Job) -> Manifest | None:
    """Read the manifest that is there; with overwrite=true a damaged one counts as none."""
    try:
        return commit.read_finished_manifest(job.out)
    except InputError:
        if job.settings.overwrite:
            return None
        raise


def _run_passes(job: Job, staging: Staging) -> Manifest:
    """Run the passes and commit; return the manifest."""
    started, clock_start = time.time(), time.monotonic()
    seconds: dict[str, float] = {}
    with _clocked(seconds, "spark"):
        spark = sparks.start_spark(job.settings.spark)
    with _clocked(seconds, "label"):
        events_read = fingerprints_by_tasks(spark, job) if job.events else []
        with stage("attributing actions to impressions") if job.events else nullcontext():
            log = open_log(spark, job, staging)
    with _clocked(seconds, "count"):
        counted = count(spark, job, log)
    check_sizes(job.sources)
    fingerprints = events_read or fingerprints_of_input(job, counted)
    counted.repeats.recount(counted.tally)
    _stop_at_failures(job, log, counted.tally)
    with _clocked(seconds, "write"), running.share_files(spark, partial(save_tables, job, counted)) as tables:
        reports, rejected_early = write_files(spark, job, log, counted, tables, staging)
        counted = replace(counted, vocabularies=_with_id_texts(spark, job, log, counted, tables))
    written = merge_tallies(reports)
    _stop_at_failures(job, log, written)
    _stop_at_nothing_good(job, log, counted.tally, written)
    with _clocked(seconds, "quarantine"):
        rejected_late = quarantine(spark, log, reports, staging)
        check_unchanged(spark, job, fingerprints)
    enter_stage("commit")
    with stage("auditing the dataset"):
        manifest, audit = assemble(job, log, counted, fingerprints, reports, [*rejected_early, *rejected_late], staging)
    seconds["all"] = time.monotonic() - clock_start
    write_run(job, spark, manifest, audit, started, seconds)
    commit.publish(job.out, manifest, _existing(job))
    commit.remove_unnamed_files(job.out, job.settings.grace_hours)
    return manifest


def _with_id_texts(
    spark: "SparkSession", job: Job, log: InputLog, counted: CountResult, tables: Callable[[], Path]
) -> list[Vocabulary]:
    """Return the vocabularies; those of an event log have the original strings of their ids."""
    events = job.settings.source.events
    if log.events is None or events is None:
        return counted.vocabularies
    return add_id_texts(spark, log.events.log, events, job.catalogue, counted.vocabularies, tables)


def _stop_at_failures(job: Job, log: InputLog, tally: Tally) -> None:
    """Raise InputError for the first line in the order of the log whose reason is set to fail."""
    failing = [(where, reason) for reason, where in tally.first.items() if getattr(job.settings.checks, reason) == FAIL]
    if failing:
        (ordinal, offset), reason = min(failing)
        lenient = "keep" if reason in ("feature_count_mismatch", "conversion_without_click") else "quarantine"
        raise InputError(
            f"{log.sources[ordinal].path}, byte {offset}: {reason} ({rules_of(job.settings.source.name)[reason]}), and "
            f"checks.{reason}=fail stops there; fix the line, or set checks.{reason}={lenient}."
        )


def _stop_at_nothing_good(job: Job, log: InputLog, scanned: Tally, written: Tally) -> None:
    """Raise InputError if no impression is left, with the most frequent reason for each table of the log."""
    if any(written.of(split, "impressions", "written") for split in SPLITS):
        return
    rejected = []
    for grain in ("impressions", "contexts"):
        by_reason = {
            reason: sum(tally.of(split, grain, reason) for split in SPLITS for tally in (scanned, written))
            for reason in rules_of(job.settings.source.name)
        }
        reason = max(by_reason, key=lambda reason: by_reason[reason])
        if by_reason[reason]:
            ordinal, offset = min(tally.first[reason] for tally in (scanned, written) if reason in tally.first)
            rejected.append(
                f"{sum(by_reason.values())} {grain} are rejected, {by_reason[reason]} of them as {reason} "
                f"({rules_of(job.settings.source.name)[reason]}; the first: {log.sources[ordinal].path}, byte {offset})"
            )
    raise InputError(
        f"source.path={job.settings.source.path} has no impression that can be written: {'; '.join(rejected)}. Repair "
        "the log, or correct the settings of its source."
    )


@contextmanager
def _clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    enter_stage(name)
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
