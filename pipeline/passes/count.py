"""The first pass over the log: what it holds, the vocabularies, the moments of numeric fields, ids of several contexts.

Every task counts its input splits; a shuffle by hash brings an id's counts together; the driver gets what is frequent.
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
from pipeline.chunks.line_columns import REASON
from pipeline.chunks.reasons import GOOD
from pipeline.chunks.sources import InputSplit
from pipeline.config.preprocess import GLOBAL
from pipeline.dataset.manifest import NUM_RESERVED_ROWS
from pipeline.features.base_vocabulary import extended, with_room
from pipeline.features.fields import Field
from pipeline.features.lookup_table import Lookup, lookup_of
from pipeline.features.moments import Moments
from pipeline.features.vocabulary import Counter, Vocabulary, fields_of, frequent, pairs_of, vocabularies
from pipeline.kernels.hashing import TRAIN
from pipeline.passes import duplicates
from pipeline.passes.duplicates import Partitions, Repeats, Sightings, num_partitions
from pipeline.passes.input import Reader, chunks_of
from pipeline.passes.job import Counted, Job
from pipeline.passes.reports import Batches
from pipeline.spark import running
from pipeline.spark.hashes import partition_keys
from pipeline.spark.workers import freeze_imports

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

#: Rows of the first pass: pairs of one vocabulary partition, sightings of one of `duplicates.Partitions`, or under
#: NO_PART the tally of a task as JSON, or under NUMBERS_PART the moments of its numeric fields.
COUNTED = "part int, blob binary"

COUNTED_SCHEMA = pa.schema([("part", pa.int32()), ("blob", pa.binary())])

NO_PART, NUMBERS_PART = -1, -2

BASE_PART = -3  # pairs of ids that the base has, as merging leaves them

BASE_LOOKUP = "base"

_BYTES_PER_VOCABULARY_PART = 1 << 30

_MOST_PAIRS = 4_000_000  # in a task's counter before it hands them on

_MOST_SIGHTINGS = 1_000_000


@dataclass(frozen=True)
class Counting:
    """The first pass: count lines and ids."""

    splits: tuple[InputSplit, ...]
    reader: Reader
    part_keys: tuple[int, ...]
    sighted: Partitions  # of impression ids; empty where an id need be the only one in its context
    fields: tuple[Field, ...]  # of the catalogue; max_ids is that of new ids
    base: Callable[[], Path] | None = None  # where this host has the lookup tables of the base

    def count(self, batches: Batches) -> Batches:
        """Split numbers → COUNTED."""
        catalogue = self.reader.catalogue
        numerics = () if self.base else catalogue.measured  # a base has their moments already
        number_F = np.array(catalogue.number_places(numerics), np.int64)
        is_counted_F = np.array([entry.is_counted for entry in catalogue.fields])
        tally, counter, moments = Tally(), Counter(), Moments(len(numerics))
        sightings = Sightings(self.sighted)
        for chunk in chunks_of(self.reader, self.splits, batches):
            tally.count_chunk(chunk)
            if self.sighted.keys:
                sightings.add(chunk)
                if len(sightings) > _MOST_SIGHTINGS:
                    yield from (_counted(part, blob) for part, blob in sightings.handed_on())
            parsed = chunk.parsed
            # Rejected lines have no values, unless a policy rejected them after parsing.
            chosen_L = (chunk.split_L == TRAIN) & (parsed.line_LC[:, REASON] == GOOD)
            if numerics:
                moments.add(numbers_of(parsed, number_F, len(numerics))[chosen_L])
            if is_counted_F.any():
                chosen_V = np.repeat(chosen_L, parsed.num_values_L)
                if not is_counted_F.all():
                    chosen_V &= is_counted_F[parsed.field_V]
                counter.add(parsed.field_V, parsed.id_V, chosen_V)
            if len(counter) > _MOST_PAIRS:
                yield from self._handed_on(counter)
                counter = Counter()
        yield from self._handed_on(counter)
        yield from (_counted(part, blob) for part, blob in sightings.handed_on())
        yield _counted(NO_PART, json.dumps(tally.to_json()).encode())
        if numerics:
            yield _counted(NUMBERS_PART, moments.to_bytes())

    def merge(self, batches: Batches) -> Batches:
        """COUNTED of one partition → its frequent pairs and those of the base's ids, or what its sightings share.

        Tallies and moments pass through.
        """
        freeze_imports()
        counter = Counter()
        sightings: dict[int, list[Any]] = {}
        for batch in batches:
            for part, blob in zip(batch.column("part").to_pylist(), batch.column("blob"), strict=True):
                if part < 0:
                    yield _counted(part, blob.as_py())
                elif part in self.sighted.keys:
                    sightings.setdefault(part, []).append(blob.as_buffer())
                else:
                    counter.add_pairs(pairs_of(blob.as_buffer()))
        for part, blobs in sightings.items():
            yield _counted(part, duplicates.shared(self.sighted.kind_of(part)[0], blobs))
        pairs = counter.pairs()
        if self.base:
            lookup = Lookup.load(self.base(), BASE_LOOKUP)
            is_known_P = lookup.indices_of(fields_of(pairs), pairs[:, 0]) >= NUM_RESERVED_ROWS
            yield _counted(BASE_PART, pairs[is_known_P].tobytes())
            pairs = pairs[~is_known_P]
        yield _counted(self.part_keys[0], frequent(pairs, self.fields).tobytes())

    def _handed_on(self, counter: Counter) -> Batches:
        for part, blob in counter.parts(len(self.part_keys)):
            yield _counted(self.part_keys[part], blob)


def count(spark: "SparkSession", job: Job, begun: "DataFrame") -> Counted:
    """Run the pass over `begun`, the input splits or the lines. With a base, its vocabularies and behind them the new ids."""
    total_bytes = sum(source.bytes for source in job.sources)
    num_parts = max(1, min(64, total_bytes // _BYTES_PER_VOCABULARY_PART))
    # An event log's duplicates have been found with its labels.
    is_global = job.settings.checks.duplicates == GLOBAL and not job.labelled
    part_keys = partition_keys(num_parts + (num_partitions(job.sources) if is_global else 0))
    sighted = Partitions(part_keys[num_parts:])
    counting = Counting(job.splits, job.reader, part_keys[:num_parts], sighted, job.catalogue.fields)
    base = job.base.vocabularies() if job.base else None
    if base is None:
        return _gathered(job, _run(begun, counting), sighted, counting.fields, None)
    fields = with_room(job.catalogue.fields, base)
    _say_where_no_room_is(job, fields)

    def save(directory: Path) -> list[Path]:
        return lookup_of(base).save(directory, BASE_LOOKUP)

    with running.shared(spark, save) as tables:
        table = _run(begun, replace(counting, fields=fields, base=tables))
    return _gathered(job, table, sighted, fields, base)


def _run(begun: "DataFrame", counting: Counting) -> "pa.Table":
    """What merging leaves, and the tallies and moments of all tasks: rows of COUNTED."""
    num_splits, num_parts = len(counting.splits), len(counting.part_keys) + len(counting.sighted.keys)
    frame = begun.mapInArrow(counting.count, COUNTED)
    frame = frame.repartition(num_parts, "part").mapInArrow(counting.merge, COUNTED)
    return running.collect(frame, "count", num_splits + num_parts, "tasks")


def _gathered(
    job: Job, table: "pa.Table", sighted: Partitions, fields: Sequence[Field], base: list[Vocabulary] | None
) -> Counted:
    tally, moments, sightings = Tally(), Moments(len(job.catalogue.measured)), []
    new, known = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)]
    for part, blob in zip(table.column("part").to_pylist(), table.column("blob"), strict=True):
        if part == NO_PART:
            tally.merge(Tally.from_json(json.loads(blob.as_py())))
        elif part == NUMBERS_PART:
            moments.merge(blob.as_py())
        elif part in sighted.keys:
            sightings.append((sighted.kind_of(part), blob.as_buffer()))
        else:
            (known if part == BASE_PART else new).append(pairs_of(blob.as_buffer()))
    repeats = Repeats.of(sightings, job.settings.split.validation, job.settings.seed)
    found = vocabularies(np.concatenate(new), fields)
    if base is not None:
        everything = [replace(entry, max_ids=None) for entry in fields]
        of_base = vocabularies(np.concatenate(known), everything)
        found = [extended(*of_field) for of_field in zip(base, of_base, found, strict=True)]
    return Counted(tally, found, moments, repeats)


def _say_where_no_room_is(job: Job, fields: Sequence[Field]) -> None:
    for entry, own in zip(job.catalogue.fields, fields, strict=True):
        if own.max_ids == 0:
            print(
                f"{entry.name}: the base has max_ids={entry.max_ids} ids or more, so no new one gets an index.",
                flush=True,
            )


def _counted(part: int, blob: bytes) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([part], pa.int32()), pa.array([blob], pa.binary())], schema=COUNTED_SCHEMA
    )
