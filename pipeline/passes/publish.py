"""Publish: move staged files to the names that their content gives them, and make the manifest that lists them.

This is the last step before the commit. After it, every file is in its place and nothing is visible yet.
"""

import os
import platform
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.audit import balance
from pipeline.audit.figures import figures
from pipeline.audit.leakage import leakage
from pipeline.audit.page import audit_page
from pipeline.audit.statistics import Statistics
from pipeline.audit.tally import Tally
from pipeline.chunks.sources import SourceFile
from pipeline.config.preprocess import PreprocessSettings, settings_xxh3
from pipeline.dataset.manifest import NUM_RESERVED_ROWS, SPLITS, DatasetFile, Manifest, ManifestField, Source, totals_of
from pipeline.features.fields import Field
from pipeline.features.vocabulary import write_vocabulary
from pipeline.passes.count import CountResult
from pipeline.passes.input import InputLog
from pipeline.passes.job import Job
from pipeline.passes.reports import DataReport, QuarantineReport
from pipeline.passes.unchanged import stamps_of
from pipeline.release import release
from pipeline.secrets import command_typed, redacted, without_secrets
from pipeline.storage import commit
from pipeline.storage.commit import Staging
from pipeline.storage.parquet_files import HashedFile
from pipeline.storage.store import Store
from pipeline.terminal import duration_text

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_IN_MANIFEST = ("lines", "quarantined", "kept", "left_out", "quarantine", "events")  # of audit.json


def assemble(
    job: Job,
    log: InputLog,
    counted: CountResult,
    fingerprints: Sequence[str],  # of the raw files
    reports: Sequence[DataReport],
    quarantine: Sequence[QuarantineReport],
    staging: Staging,
) -> tuple[Manifest, dict[str, Any]]:
    """Move every file to its place and write audit.json; return the manifest, which the commit publishes, and the audit."""
    files = _install_data(job, reports)
    fields = tuple(_describe_field(job, entry, counted, staging) for entry in job.catalogue.fields)
    quarantine_files = [
        {
            "path": job.out.install(report.file),
            "lines": report.num_lines,
            "bytes": report.file.bytes,
            "xxh3": report.file.xxh3,
        }
        for report in quarantine
    ]
    totals = totals_of(files)
    balanced = balance.reconcile(counted.tally, merge_tallies(reports), totals, quarantine_files)
    if log.events:
        balanced["events"] = log.events.audit
    content = balanced | figures(job.catalogue, statistics_of(reports, staging))
    if log.events:
        content["events"] = with_details(log.events.audit, log.events.details)
    content["leakage"] = leakage(job.out.location, files, job.catalogue.fields, job.settings.audit)
    content["examples"] = balance.examples_of([report.examples for report in quarantine], log.sources)
    determining = job.determining
    manifest = Manifest(
        settings=determining,
        settings_xxh3=settings_xxh3(determining),
        sources=tuple(Source(source.name, source.bytes, fingerprints[source.ordinal]) for source in job.sources),
        fields=fields,
        labels=_label_definitions(job.settings),
        files=tuple(files),
        totals=totals,
        audit={name: balanced[name] for name in _IN_MANIFEST if name in balanced},
        lineage=job.base.lineage if job.base else (),
    )
    content[commit.OF_MANIFEST] = manifest.xxh3
    commit.write_json(job.out, commit.AUDIT, content)
    return manifest, content


def with_details(audit: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of the manifest with what audit.json alone says beside them."""
    found = dict(audit)
    for name, value in details.items():
        found[name] = found[name] | value if name in found else value
    return found


def merge_tallies(reports: Sequence[DataReport]) -> Tally:
    """Sum what grouping counted in all partitions."""
    merged = Tally()
    for report in reports:
        merged.merge(report.tally)
    return merged


def _install_data(job: Job, reports: Sequence[DataReport]) -> list[DatasetFile]:
    """Move the data files to their places, in the order of the manifest."""
    return [
        DatasetFile(job.out.install(report.file), report.split, report.file.bytes, report.file.xxh3, report.row_groups)
        for report in sorted(reports, key=_order)
        if report.file
    ]


def statistics_of(reports: Sequence[DataReport], staging: Staging) -> dict[str, Statistics]:
    """Merge the statistics of each split in the order of its files; only of splits that have rows."""
    found: dict[str, Statistics] = {}
    for report in sorted(reports, key=_order):
        if report.statistics["sizes"]:
            mine = Statistics.of_report(report.statistics, staging.load_array)
            found.setdefault(report.split, Statistics()).merge(mine)
    return found


def _order(report: DataReport) -> tuple[int, int]:
    return SPLITS.index(report.split), report.number


def _describe_field(job: Job, entry: Field, counted: CountResult, staging: Staging) -> ManifestField:
    vocabulary = counted.vocabularies[job.catalogue.fields.index(entry)]
    num_rows = entry.kind_of_field.num_rows(vocabulary.num_rows - NUM_RESERVED_ROWS, entry.parameters)
    found = ManifestField(
        entry.name, entry.raw_id, entry.scope, entry.arity, entry.weighted, num_rows, "", "", entry.kind,
        entry.hash_buckets, parameters=entry.parameters,
    )  # fmt: skip
    if entry.needs_moments:
        mean, std = _mean_std(job, entry, counted)
        return replace(found, mean=mean, std=std)
    if not entry.is_counted:
        return found
    file = HashedFile(staging.path(f"vocabulary-{entry.name}"))
    write_vocabulary(vocabulary, file)
    name = job.out.install(staging.seal(file.to_staged(), commit.VOCABULARY_FOLDER, entry.name))
    return replace(found, vocabulary=name, vocabulary_xxh3=file.xxh3)


Moment = float | tuple[float, ...] | None


def _mean_std(job: Job, entry: Field, counted: CountResult) -> tuple[Moment, Moment]:
    if job.base:
        before = job.base.field(entry.name)
        return before.mean, before.std
    measured = job.catalogue.measured
    first = sum(other.num_numbers for other in measured[: measured.index(entry)])
    if not entry.kind_of_field.reads_vectors:
        return counted.moments.mean_std(first)
    mean, std = zip(*map(counted.moments.mean_std, range(first, first + entry.num_numbers)), strict=True)
    return mean, std


def _label_definitions(settings: PreprocessSettings) -> dict[str, str]:
    daction = settings.labels.daction
    if settings.source.events:
        return settings.source.events.label_definitions(daction)
    labels = {
        "click": "the impression was clicked",
        "conversion": "the impression was clicked and bought (ESMM eq. 3)",
    }
    if daction:
        labels["daction"] = f"the impression was clicked and followed by {' or '.join(daction)}"
    return labels


def write_run(
    job: Job,
    spark: "SparkSession",
    manifest: Manifest,
    audit: Mapping[str, Any],
    started: float,
    seconds: Mapping[str, float],
) -> None:
    """Write audit.html, and run.json, which holds what may differ between two runs that give the same dataset."""
    page = audit_page(audit, manifest, _facts_of_run(job, spark, started, seconds))
    job.out.put(commit.AUDIT_PAGE, page.encode())
    write_run_of(job.out, manifest.xxh3, job.settings.run_only(), job.sources, spark, started, seconds)


def _facts_of_run(
    job: Job, spark: "SparkSession", started: float, seconds: Mapping[str, float]
) -> list[tuple[str, str]]:
    """List what the page says of the job that wrote it."""
    versions = f"entirespace {release()} · Python {sys.version.split()[0]} · Spark {spark.version}"
    facts = [
        ("dataset", without_secrets(job.out.location)),
        ("raw log", without_secrets(job.settings.source.path)),
        ("written", f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(started))}, in {duration_text(seconds['all'])}"),
        ("versions", versions),
    ]
    command = command_typed()
    return facts + ([("command", command)] if command else [])


def write_run_of(
    store: Store,
    of_xxh3: str,
    settings: dict[str, Any],
    sources: Sequence[SourceFile],
    spark: "SparkSession",
    started: float,
    seconds: Mapping[str, float],
) -> None:
    """Write run.json beside the list of files whose text has the checksum `of_xxh3`."""
    run = {
        commit.OF_MANIFEST: of_xxh3,
        "settings": redacted(settings),
        "inputs": stamps_of(sources),
        "host": socket.gethostname(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "spark": {"version": spark.version, "master": spark.sparkContext.master},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    commit.write_json(store, commit.RUN, run, mode=0o600)  # it holds settings
