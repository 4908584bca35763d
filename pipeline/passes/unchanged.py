"""The input stays what it was: while the job reads it, and since a finished dataset was made of it.

second pass     compares the lines of each input split with those of the first (chunks/fingerprints.py)
check_sizes     after the first pass: no file has grown, shrunk or gone, or the size in the manifest is wrong
check_unchanged in the end: files with another stamp than in the beginning are read once more, and compared
changed_since   before a job that may have nothing to do: likewise, with the stamps in run.json
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pipeline.aliccp.reader import fingerprint_of_file
from pipeline.chunks.files import files_of
from pipeline.chunks.fingerprints import has_changed
from pipeline.chunks.sources import ACTIONS, SourceFile
from pipeline.dataset.manifest import Source
from pipeline.errors import InputError
from pipeline.passes.count import CountResult
from pipeline.passes.input import numbers_in
from pipeline.passes.job import Job
from pipeline.spark import running
from pipeline.spark.running import Batches
from pipeline.storage import commit

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_FILE_FINGERPRINTS = "number int, fingerprint string"


def check_sizes(sources: Sequence[SourceFile]) -> list[SourceFile]:
    """Return the files that were written to since the job found them. Raises InputError if one is gone or has another size."""
    touched: list[SourceFile] = []
    if not sources:
        return touched
    files = files_of(sources[0].path, sources[0].by_spark)
    for source, entry in zip(sources, files.entries([source.path for source in sources]), strict=True):
        if entry is None:
            raise InputError(f"{source.path} is gone since the job began; put it back, or run again without it.")
        if entry.bytes != source.bytes:
            raise InputError(
                f"{source.path} had {source.bytes} bytes when the job began and has {entry.bytes} now, so nothing was "
                "written; run again once nothing writes to it any more."
            )
        if entry.stamp != source.stamp:
            touched.append(source)
    return touched


def check_unchanged(spark: "SparkSession", job: Job, fingerprints: Sequence[str]) -> None:
    """Raise InputError unless every file is what it was when the passes read it: `fingerprints`, by ordinal.

    Spark has read the tables of an event log several times, and compared nothing: all of them are read once more.
    """
    touched = check_sizes(job.sources)
    if job.events:
        found = fingerprints_by_tasks(spark, job)
        changed = [source for source in job.sources if found[source.ordinal] != fingerprints[source.ordinal]]
    else:
        changed = list(_differing(job, touched, fingerprints))
    if changed:
        raise InputError(has_changed(changed[0]))


def fingerprints_of_input(job: Job, counted: CountResult) -> list[str]:
    """Return the fingerprint of each raw file of source=aliccp: of what the first pass read, and of the action log."""
    return [
        fingerprint_of_file(source, job.settings.source.max_line_bytes)
        if source.table == ACTIONS
        else counted.fingerprints.of_file(source.ordinal)
        for source in job.sources
    ]


def fingerprints_by_tasks(spark: "SparkSession", job: Job) -> list[str]:
    """Read every file of an event log, one in a task; return their fingerprints."""
    sources, max_line_bytes = job.sources, job.settings.source.max_line_bytes
    if not sources:
        return []  # every table is one of a catalog

    def read(batches: Batches) -> Batches:
        for number in numbers_in(batches):
            text = fingerprint_of_file(sources[number], max_line_bytes)
            yield pa.RecordBatch.from_arrays(
                [pa.array([number], pa.int32()), pa.array([text])], names=["number", "fingerprint"]
            )

    frame = running.number_partitions(spark, len(sources)).mapInArrow(read, _FILE_FINGERPRINTS)
    table = running.collect(frame, "checksums of the tables", len(sources), "files")
    found = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return [found[number] for number in range(len(sources))]


class Finished(Protocol):
    """A finished dataset, or finished scores: its list of files says what it was made of."""

    @property
    def sources(self) -> Sequence[Source]: ...
    @property
    def xxh3(self) -> str: ...


def changed_since(job: Job, existing: Finished) -> SourceFile | None:
    """Return the first file that is not the one of what is finished, whose files have the same names and sizes.

    A file whose stamp is that in run.json is not read. Of a dataset of an earlier release, nothing is known.
    """
    run = commit.read_run(job.out)
    stamps: dict[str, Any] = run.get("inputs", {}) if run.get(commit.OF_MANIFEST) == existing.xxh3 else {}
    fingerprints = [source.fingerprint for source in existing.sources]
    touched = [
        source
        for source in job.sources
        if fingerprints[source.ordinal] and stamps.get(source.name) != list(source.stamp)
    ]
    if touched:
        print(
            f"{touched[0].path} was written or moved since {job.out.location} was made"
            f"{f', and {len(touched) - 1} more' if len(touched) > 1 else ''}: comparing the content.",
            flush=True,
        )
    return next(_differing(job, touched, fingerprints), None)


def stamps_of(sources: Sequence[SourceFile]) -> dict[str, list[int]]:
    """Return the stamps for run.json."""
    return {source.name: list(source.stamp) for source in sources}


def _differing(job: Job, sources: Sequence[SourceFile], fingerprints: Sequence[str]) -> Iterator[SourceFile]:
    """Yield those of `sources` whose content has another fingerprint."""
    for source in sources:
        if fingerprint_of_file(source, job.settings.source.max_line_bytes) != fingerprints[source.ordinal]:
            yield source
