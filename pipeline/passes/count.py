"""The first pass over the log: what it holds, the vocabularies, the moments of numeric fields, ids of several contexts.

Every task counts its input splits; a shuffle by hash brings an id's counts together; the driver gets what is frequent.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.audit.tally import Tally
from pipeline.config.preprocess import GLOBAL
from pipeline.contexts.buckets import partition_keys
from pipeline.features.base_vocabulary import extended, with_room
from pipeline.features.fields import Field
from pipeline.features.lookup_table import lookup_of
from pipeline.features.moments import Moments
from pipeline.features.vocabulary import Vocabulary, pairs_of, vocabularies
from pipeline.passes.counting import BASE_LOOKUP, BASE_PART, COUNTED, NO_PART, NUMBERS_PART, Counting
from pipeline.passes.duplicates import Partitions, Repeats, num_partitions
from pipeline.passes.job import Counted, Job
from pipeline.spark import session as sparks

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

_BYTES_PER_VOCABULARY_PART = 1 << 30


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

    with sparks.shared(spark, save) as tables:
        table = _run(begun, replace(counting, fields=fields, base=tables))
    return _gathered(job, table, sighted, fields, base)


def _run(begun: "DataFrame", counting: Counting) -> "pa.Table":
    """What merging leaves, and the tallies and moments of all tasks: rows of COUNTED."""
    num_splits, num_parts = len(counting.splits), len(counting.part_keys) + len(counting.sighted.keys)
    frame = begun.mapInArrow(counting.count, COUNTED)
    frame = frame.repartition(num_parts, "part").mapInArrow(counting.merge, COUNTED)
    return sparks.collect(frame, "count", num_splits + num_parts, "tasks")


def _gathered(
    job: Job, table: "pa.Table", sighted: Partitions, fields: Sequence[Field], base: list[Vocabulary] | None
) -> Counted:
    tally, moments, sightings = Tally(), Moments(len(job.catalogue.numerics)), []
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
