"""The first pass over the log: count lines and ids, sum the moments of numeric fields, find ids of several contexts.

Every task counts its input splits. A shuffle by hash brings the counts of an id together. The driver gets frequent ids.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.audit.tally import Tally
from pipeline.chunks.chunk import numbers_of
from pipeline.chunks.fingerprints import SplitFingerprints
from pipeline.chunks.line_columns import REASON
from pipeline.chunks.reasons import GOOD
from pipeline.config.preprocess import GLOBAL
from pipeline.dataset.lookup_table import Lookup, lookup_of
from pipeline.dataset.manifest import NUM_RESERVED_ROWS
from pipeline.features.base_vocabulary import extend, retire, with_room
from pipeline.features.fields import Catalogue, Field
from pipeline.features.moments import Moments
from pipeline.features.vocabulary import Counter, Vocabulary, fields_of, keep_frequent, pairs_of, vocabularies
from pipeline.kernels.hashing import TRAIN
from pipeline.passes.duplicates import Occurrences, Partitions, Repeats, ids_in_several_contexts, num_partitions
from pipeline.passes.input import InputLog, TaskInput
from pipeline.passes.job import Job
from pipeline.spark import running
from pipeline.spark.hashes import partition_keys
from pipeline.spark.running import Batches
from pipeline.spark.workers import freeze_imports

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: Rows of the first pass. `part` says what `blob` holds:
#: the key of a vocabulary partition: pairs of ids and counts; a key of `duplicates.Partitions`: occurrences of
#: impression ids; NO_PART: the tally of a task and the fingerprints of its splits as JSON; NUMBERS_PART: the moments of
#: its numeric fields.
COUNTS = "part int, blob binary"
_COUNTS_SCHEMA = pa.schema([("part", pa.int32()), ("blob", pa.binary())])
NO_PART, NUMBERS_PART = -1, -2
BASE_PART = -3  # merged pairs of ids that the base has
BASE_LOOKUP = "base"
_BYTES_PER_VOCABULARY_PART = 1 << 30
_MOST_PAIRS = 4_000_000  # in a task's counter before it is flushed
_MOST_OCCURRENCES = 1_000_000
_DAY_LENGTH_MS = 86_400_000


@dataclass(frozen=True)
class CountTasks:
    """The tasks of the first pass: count lines and ids, and merge the counts of an id."""

    input: TaskInput
    catalogue: Catalogue
    part_keys: tuple[int, ...]
    occurrences: Partitions  # of impression ids; empty if ids are only compared within a context
    fields: tuple[Field, ...]  # of the catalogue; max_ids is that of new ids
    base: Callable[[], Path] | None = None  # where this host has the lookup tables of the base

    def count(self, batches: Batches) -> Batches:
        """Count the lines and ids of a task's rows of `TaskInput.frame` → COUNTS."""
        catalogue = self.catalogue
        numerics = () if self.base else catalogue.measured  # the base's moments are kept
        places = catalogue.number_places(numerics)
        is_counted_F = np.array([entry.is_counted for entry in catalogue.fields])
        tally, counter, moments = Tally(), Counter(), Moments(places.total)
        occurrences, fingerprints = Occurrences(self.occurrences), SplitFingerprints()
        for chunk in self.input.chunks(batches):
            tally.count_chunk(chunk)
            fingerprints.add(chunk)
            if self.occurrences.keys:
                occurrences.add(chunk)
                if len(occurrences) > _MOST_OCCURRENCES:
                    yield from (_counts_row(part, blob) for part, blob in occurrences.flush())
            parsed = chunk.parsed
            # Rejected lines have no values, unless a policy rejected them after parsing.
            chosen_L = (chunk.split_L == TRAIN) & (parsed.line_table[:, REASON] == GOOD)
            if numerics:
                moments.add(numbers_of(parsed, places)[chosen_L])
            if is_counted_F.any():
                chosen_V = np.repeat(chosen_L, parsed.num_values_L)
                if not is_counted_F.all():
                    chosen_V &= is_counted_F[parsed.field_V]
                counter.add(parsed.field_V, parsed.id_V, chosen_V)
            if len(counter) > _MOST_PAIRS:
                yield from self._flush(counter)
                counter = Counter()
        yield from self._flush(counter)
        yield from (_counts_row(part, blob) for part, blob in occurrences.flush())
        counted = {"tally": tally.to_json(), "fingerprints": fingerprints.to_rows()}
        yield _counts_row(NO_PART, json.dumps(counted).encode())
        if numerics:
            yield _counts_row(NUMBERS_PART, moments.to_bytes())

    def merge(self, batches: Batches) -> Batches:
        """Merge COUNTS of a partition → its frequent pairs and those of the base's ids, or its repeated impression ids.

        Tallies and moments pass through.
        """
        freeze_imports()
        counter = Counter()
        occurrences: dict[int, list[Any]] = {}
        for batch in batches:
            for part, blob in zip(batch.column("part").to_pylist(), batch.column("blob"), strict=True):
                if part < 0:
                    yield _counts_row(part, blob.as_py())
                elif part in self.occurrences.keys:
                    occurrences.setdefault(part, []).append(blob.as_buffer())
                else:
                    counter.add_pairs(pairs_of(blob.as_buffer()))
        for part, blobs in occurrences.items():
            table, _ = self.occurrences.kind_of(part)
            yield _counts_row(part, ids_in_several_contexts(table, blobs))
        pairs = counter.pairs()
        if self.base:
            lookup = Lookup.load(self.base(), BASE_LOOKUP)
            is_known_N = lookup.indices_of(fields_of(pairs), pairs[:, 0]) >= NUM_RESERVED_ROWS
            yield _counts_row(BASE_PART, pairs[is_known_N].tobytes())
            pairs = pairs[~is_known_N]
        yield _counts_row(self.part_keys[0], keep_frequent(pairs, self.fields).tobytes())

    def _flush(self, counter: Counter) -> Batches:
        for part, blob in counter.parts(len(self.part_keys)):
            yield _counts_row(self.part_keys[part], blob)


@dataclass(frozen=True)
class CountResult:
    """The results of the first pass."""

    tally: Tally
    vocabularies: list[Vocabulary]  # of each field in catalogue order; without ids for a numeric or a hashed one
    moments: Moments  # of the numbers of Catalogue.measured, side by side
    repeats: Repeats  # impression ids that stand in several contexts
    fingerprints: SplitFingerprints  # of the input splits as this pass read them


def count(spark: "SparkSession", job: Job, log: InputLog) -> CountResult:
    """Run the first pass over `log`. With a base, its ids keep their indices and new ids follow."""
    total_bytes = sum(source.bytes for source in job.sources)
    num_parts = max(1, min(64, total_bytes // _BYTES_PER_VOCABULARY_PART))
    # The duplicates of an event log are found already, with its labels.
    is_global = job.settings.checks.duplicates == GLOBAL and not log.events
    part_keys = partition_keys(num_parts + (num_partitions(job.sources) if is_global else 0))
    occurrences = Partitions(part_keys[num_parts:])
    counting = CountTasks(log.input, job.catalogue, part_keys[:num_parts], occurrences, job.catalogue.fields)
    frame, num_splits = log.input.frame(spark), len(log.splits)
    base = job.base.vocabularies() if job.base else None
    if base is None:
        table = _count_and_merge(frame, counting, num_splits, total_bytes)
        return _merge_on_driver(job, table, occurrences, counting.fields, None)
    fields = with_room(job.catalogue.fields, base)
    _report_full_fields(job, fields)

    def save(directory: Path) -> list[Path]:
        return lookup_of(base).save(directory, BASE_LOOKUP)

    with running.share_files(spark, save) as tables:
        table = _count_and_merge(frame, replace(counting, fields=fields, base=tables), num_splits, total_bytes)
    return _merge_on_driver(job, table, occurrences, fields, base)


def _count_and_merge(begin: "DataFrame", counting: CountTasks, num_splits: int, num_bytes: int) -> pa.Table:
    """Return the merged counts of all partitions, and the tallies and moments of all tasks: rows of COUNTS."""
    num_parts = len(counting.part_keys) + len(counting.occurrences.keys)
    frame = begin.mapInArrow(counting.count, COUNTS)
    frame = frame.repartition(num_parts, "part").mapInArrow(counting.merge, COUNTS)
    return running.collect(frame, "pass 1 of 2: counting ids", num_splits + num_parts, "tasks", num_bytes)


def _merge_on_driver(
    job: Job, table: pa.Table, occurrences: Partitions, fields: Sequence[Field], base: list[Vocabulary] | None
) -> CountResult:
    """Merge the rows of COUNTS into vocabularies, moments and repeats, on the driver."""
    places = job.catalogue.number_places(job.catalogue.measured)
    tally, moments, repeating = Tally(), Moments(places.total), []
    fingerprints = SplitFingerprints()
    new, known = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)]
    for part, blob in zip(table.column("part").to_pylist(), table.column("blob"), strict=True):
        if part == NO_PART:
            counted = json.loads(blob.as_py())
            tally.merge(Tally.from_json(counted["tally"]))
            fingerprints.merge(counted["fingerprints"])
        elif part == NUMBERS_PART:
            moments.merge(blob.as_py())
        elif part in occurrences.keys:
            repeating.append((occurrences.kind_of(part), blob.as_buffer()))
        else:
            (known if part == BASE_PART else new).append(pairs_of(blob.as_buffer()))
    repeats = Repeats.of(repeating, job.settings.split.validation, job.settings.seed)
    found = vocabularies(np.concatenate(new), fields)
    if base is not None:
        everything = [replace(entry, max_ids=None) for entry in fields]
        of_base = vocabularies(np.concatenate(known), everything)
        found = [extend(*of_field) for of_field in zip(base, of_base, found, strict=True)]
    found = _without_retired(job, found)
    return CountResult(tally, found, moments, repeats, fingerprints)


def _without_retired(job: Job, found: list[Vocabulary]) -> list[Vocabulary]:
    """Retire the ids older than vocabulary.max_age_days, and say how many; without this setting, none."""
    max_age_days, events = job.settings.vocabulary.max_age_days, job.settings.source.events
    if max_age_days is None or events is None:
        return found
    train_end_ms, kept = events.boundaries_ms()[1], list(found)
    for number, entry in enumerate(job.catalogue.fields):
        if entry.is_counted:
            kept[number] = retire(found[number], train_end_ms, max_age_days * _DAY_LENGTH_MS)
            if num_retired := len(found[number].id_N) - len(kept[number].id_N):
                print(f"{entry.name}: {num_retired:,} ids not seen for {max_age_days:g} days were retired.", flush=True)
    return kept


def _report_full_fields(job: Job, fields: Sequence[Field]) -> None:
    for entry, own in zip(job.catalogue.fields, fields, strict=True):
        if own.max_ids == 0:
            print(
                f"{entry.name}: the base has max_ids={entry.max_ids} ids or more, so no new one gets an index.",
                flush=True,
            )


def _counts_row(part: int, blob: bytes) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([part], pa.int32()), pa.array([blob], pa.binary())], schema=_COUNTS_SCHEMA
    )
