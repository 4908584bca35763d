"""The chain: a raw log without labels, or a dataset → scores. Each step is a function below, called in order by `score`."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf.errors import OmegaConfBaseException

from pipeline.aliccp.find import find_sources
from pipeline.audit import balance
from pipeline.audit.figures import figures
from pipeline.chunks.fingerprints import SplitFingerprints
from pipeline.config.features import FeaturesSettings
from pipeline.config.preprocess import (
    SPARK,
    ChecksSettings,
    PreprocessSettings,
    SplitSettings,
)
from pipeline.config.score import ScoreSettings
from pipeline.dataset.manifest import Source, dataset_files
from pipeline.errors import InputError, printable, reason_of
from pipeline.events.find import find_log
from pipeline.features.base_vocabulary import vocabularies_of
from pipeline.features.fields import Catalogue, Field
from pipeline.passes.input import open_log
from pipeline.passes.job import Job, check_apart, pin_versions
from pipeline.passes.publish import merge_tallies, statistics_of, write_run_of
from pipeline.passes.quarantine import quarantine
from pipeline.passes.reports import DataReport
from pipeline.passes.score_dataset import ScoredDataset, score_dataset
from pipeline.passes.score_log import score_log
from pipeline.passes.scorer import TrainedModel
from pipeline.passes.unchanged import changed_since, check_unchanged, fingerprints_by_tasks
from pipeline.plain_settings import build_settings
from pipeline.spark.exceptions import plain_errors
from pipeline.spark.session import start_spark
from pipeline.storage import commit
from pipeline.storage.commit import Staging
from pipeline.storage.local_store import LocalStore
from pipeline.storage.lock import dataset_lock
from pipeline.storage.scores import ScoreFile, ScoreManifest, publish_scores, read_scores, remove_unnamed_scores
from pipeline.storage.store import Store, store_of
from pipeline.telemetry import enter_stage

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Of a model's origin: where it lies, and which release scores, do not say which one it is.
_NOT_OF_MODEL = ("run", "version")
#: Of source.events: what decides the features and ids of an impression, and nothing of its labels.
_EVENTS_KEYS = ("impressions", "joins", "context_window_s", "time_unit", "time_zone", "list_separator", "nulls")


def score(settings: ScoreSettings, model: TrainedModel) -> ScoreManifest:
    """Write the scores that `settings` describe, unless they are finished already; return the content of scores.json.

    Raises InputError for a mistake in the settings or the input, before Spark starts where it can be seen by then.
    """
    with plain_errors():
        job = ScoreJob.of(settings, model)
    with dataset_lock(job.out):
        if done := _finished_scores(job):
            remove_unnamed_scores(job.out)
            return done
        with commit.open_staging(job.out, settings.staging) as staging, plain_errors():
            return _score_and_commit(job, staging)


@dataclass(frozen=True)
class ScoreJob:
    """The settings, model, input and output store of one run, as known before Spark starts."""

    settings: ScoreSettings
    model: TrainedModel
    out: Store
    raw: Job | None  # the raw log, read as a dataset would be made of it
    scored: ScoredDataset | None  # in place of it

    @classmethod
    def of(cls, settings: ScoreSettings, model: TrainedModel) -> "ScoreJob":
        """Find what `settings` name. Raises InputError for what is wrong there."""
        out = store_of(settings.out)
        if settings.data is not None:
            scored = ScoredDataset.of(settings.data, settings.split, model)
            if store_of(settings.data).location == out.location:
                raise InputError(f"out={settings.out} is the dataset itself; choose another folder for its scores.")
            return cls(settings, model, out, None, scored)
        return cls(settings, model, out, _raw_job(settings, model, out), None)

    @property
    def sources(self) -> tuple[tuple[str, int], ...]:
        """Name and size of each raw file; of a scored dataset, its manifest and the bytes of its files."""
        if self.raw:
            return tuple((source.name, source.bytes) for source in self.raw.sources)
        assert self.scored is not None
        return ((f"{self.scored.split} of {self.scored.manifest.xxh3}", sum(file.bytes for file in self.scored.files)),)

    @property
    def determining(self) -> dict[str, Any]:
        """The settings that decide what the scores are, as plain JSON."""
        chosen: dict[str, Any] = {"impressions_per_batch": self.settings.impressions_per_batch}
        if self.raw:
            source = self.raw.settings.source
            chosen["checks"] = asdict(self.raw.settings.checks)
            chosen["source"] = {"name": source.name, "max_line_bytes": source.max_line_bytes}
            if source.events:
                chosen["source"]["events"] = {key: asdict(source.events)[key] for key in _EVENTS_KEYS}
        plain: dict[str, Any] = json.loads(json.dumps(chosen))
        return plain


def _raw_job(settings: ScoreSettings, model: TrainedModel, out: Store) -> Job:
    """Return the job that would preprocess the log by the settings of the model's dataset, where they decide on features."""
    source, of_model = settings.source, _settings_of_dataset(model)
    if source.name != (name := of_model.source_name):
        raise InputError(
            f"source={source.name} is not the layout of the log that the run was trained on (source={name}); its fields "
            f"and ids mean something else there: give source={name}, or one that is built on it."
        )
    check_apart(source.path, settings.out)
    events = source.events
    if events and not settings.staging and not isinstance(out, LocalStore):
        raise InputError(
            f"out={settings.out} is an address, and source=events stores impressions between its stages; give a directory "
            "that all workers see as staging=DIRECTORY."
        )
    fields = _catalogue_of(model, of_model.features.group, events is not None)
    checks = of_model.checks
    checks.conversion_without_click = "keep"  # labels are not read
    assembled = PreprocessSettings(
        out=settings.out, overwrite=settings.overwrite, staging=settings.staging,
        source=source, features=of_model.features, split=SplitSettings(validation=0.0), checks=checks,
        spark=settings.spark,
    )  # fmt: skip
    if events:
        unlabelled = replace(events, impressions=events.impressions.without_labels(), names={})
        log = find_log(source.path, unlabelled, fields, False, lambda: start_spark(settings.spark))
        return Job(pin_versions(assembled, log), fields, log.files, out, log)
    by_spark = source.reader == SPARK
    if by_spark:
        start_spark(settings.spark)  # nothing else can read the files
    return Job(assembled, fields, tuple(find_sources(source.path, False, by_spark, needs_labels=False)), out)


@dataclass(frozen=True)
class _DatasetSettings:
    """The settings in the manifest of the model's dataset that decide what is read of a line."""

    source_name: str
    features: FeaturesSettings
    checks: ChecksSettings


def _settings_of_dataset(model: TrainedModel) -> _DatasetSettings:
    settings: Mapping[str, Any] = model.manifest.settings
    try:
        return _DatasetSettings(
            str(settings["source"]["name"]),
            build_settings(FeaturesSettings, settings["features"]),
            build_settings(ChecksSettings, settings["checks"]),
        )
    except (KeyError, TypeError, OmegaConfBaseException) as error:
        raise InputError(
            f"{model.dataset}/manifest.json does not say how its raw log is read ({reason_of(error)}), so no raw log can be "
            "scored by it; score a dataset (data=…)."
        ) from error


def _catalogue_of(model: TrainedModel, group: str, timed: bool) -> Catalogue:
    """Return the fields of the model, in the order of the towers' inputs."""
    fields = [
        Field(
            entry.name, entry.raw_id, entry.scope, entry.arity, entry.weighted, 1, None, entry.kind, entry.hash_buckets,
            entry.parameters,
        )
        for entry in model.manifest.fields
    ]  # fmt: skip
    return Catalogue(tuple(fields), group, timed)


def _finished_scores(job: ScoreJob) -> ScoreManifest | None:
    """Return the scores if they are there already. Raises InputError if others are in their place."""
    existing = _existing_scores(job)
    if existing is None:
        return None
    there = tuple((source.name, source.bytes) for source in existing.sources)
    differences = [
        what
        for what, differs in (
            ("another checkpoint or run", _identity(existing.origin) != _identity(job.model.origin)),
            ("other settings", existing.settings != job.determining),
            ("another log", there != job.sources),
        )
        if differs
    ]
    if not differences and job.raw and (changed := changed_since(job.raw, existing)):
        differences = [f"another {changed.name} of the same size"]
    if not differences:
        print(f"{job.out.location} is already there, of this checkpoint and log; nothing to do.", flush=True)
        return existing
    if not job.settings.overwrite:
        raise InputError(
            f"out={job.out.location} holds finished scores made with {differences[0]}; choose another out, or "
            "overwrite=true to replace them."
        )
    return None


def _identity(origin: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in origin.items() if name not in _NOT_OF_MODEL}


def _existing_scores(job: ScoreJob) -> ScoreManifest | None:
    """Read the scores.json that is there; with overwrite=true a damaged one counts as none."""
    try:
        return read_scores(job.out)
    except InputError:
        if job.settings.overwrite:
            return None
        raise


def _score_and_commit(job: ScoreJob, staging: Staging) -> ScoreManifest:
    """Score and commit; return the content of scores.json."""
    started, clock_start = time.time(), time.monotonic()
    enter_stage("spark")
    spark = start_spark(job.settings.spark)
    enter_stage("score")
    most = job.settings.impressions_per_batch
    if job.scored:
        reports = score_dataset(spark, job.scored, job.model, most, staging)
        scores = _list_scores(job, reports, [Source(*job.sources[0])], {})
    else:
        scores = _score_raw(spark, job, most, staging)
    raw_files = job.raw.sources if job.raw else ()
    run_only: dict[str, Any] = {"run": job.settings.run, "out": job.settings.out, "spark": asdict(job.settings.spark)}
    run_only |= {"source": {"path": job.settings.source.path}, "data": job.settings.data}
    seconds = {"all": time.monotonic() - clock_start}
    write_run_of(job.out, scores.xxh3, run_only, raw_files, spark, started, seconds)
    enter_stage("commit")
    publish_scores(job.out, scores)
    remove_unnamed_scores(job.out)
    return scores


def _score_raw(spark: "SparkSession", job: ScoreJob, most: int, staging: Staging) -> ScoreManifest:
    raw, model = job.raw, job.model
    assert raw is not None
    vocabularies = vocabularies_of(dataset_files(model.dataset), model.manifest.fields)
    read_first = fingerprints_by_tasks(spark, raw) if raw.events else []
    log = open_log(spark, raw, staging, needs_labels=False)
    found = score_log(spark, raw, log, model, vocabularies, most, staging)
    fingerprints = read_first or [
        SplitFingerprints(found.scan.fingerprints).of_file(one.ordinal) for one in raw.sources
    ]
    totals = _totals(found.reports)
    if not any(totals.values()):
        rejected = {name: number for name, number in found.scan.tally.counts.items() if number}
        raise InputError(
            f"source.path={job.settings.source.path} has no impression that can be scored, but {rejected}; an impression "
            "needs a line that can be read and the line of its context."
        )
    enter_stage("quarantine")
    rejected_late = quarantine(spark, log, found.reports, staging)
    check_unchanged(spark, raw, fingerprints)
    rejects = [*found.quarantine, *rejected_late]
    files = [
        {"path": job.out.install(one.file), "lines": one.num_lines, "bytes": one.file.bytes, "xxh3": one.file.xxh3}
        for one in rejects
    ]
    by_split = {split: {"impressions": number} for split, number in totals.items()}
    audit = balance.reconcile(found.scan.tally, merge_tallies(found.reports), by_split, files)
    sources = [Source(one.name, one.bytes, fingerprints[one.ordinal]) for one in raw.sources]
    scores = _list_scores(job, found.reports, sources, audit)
    content = audit | figures(raw.catalogue, statistics_of(found.reports, staging))
    content["examples"] = balance.examples_of([one.examples for one in rejects], log.sources)
    content[commit.OF_MANIFEST] = scores.xxh3
    commit.write_json(job.out, commit.AUDIT, content)
    return scores


def _list_scores(
    job: ScoreJob, reports: list[DataReport], sources: list[Source], audit: Mapping[str, Any]
) -> ScoreManifest:
    """Move every file to its place, and list them."""
    files = tuple(
        ScoreFile(
            job.out.install(report.file), report.split, report.file.bytes, report.file.xxh3,
            sum(group.impressions for group in report.row_groups),
        )
        for report in sorted(reports, key=lambda report: (report.split, report.number))
        if report.file
    )  # fmt: skip
    return ScoreManifest(
        job.determining, dict(job.model.origin), tuple(sources), job.model.outputs, files, _totals(reports), dict(audit)
    )


def _totals(reports: list[DataReport]) -> dict[str, int]:
    """Count the impressions of each split that has files."""
    totals: dict[str, int] = {}
    for report in reports:
        if report.file:
            totals[report.split] = totals.get(report.split, 0) + sum(group.impressions for group in report.row_groups)
    return totals


def summarize_scores(scores: ScoreManifest) -> str:
    """Sum up scores in a line for each split and one for the quarantined lines."""
    model = f"{scores.origin.get('checkpoint', '?')} of {scores.origin.get('run', '?')}"
    lines = [f"{split}: {number:,} impressions scored by {model}" for split, number in scores.totals.items()]
    if "quarantined" in scores.audit:
        reasons = {reason: number for reason, number in scores.audit["quarantined"].items() if number}
        listed = ", ".join(f"{number:,} {printable(reason)}" for reason, number in reasons.items())
        lines.append(f"quarantined: {listed or 'nothing'}")
    return "\n".join(lines)
