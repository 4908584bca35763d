"""The tasks of the first pass: count lines, ids and numbers, and bring the counts of an id together."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.aliccp.parse import GOOD, REASON
from pipeline.audit.tally import Tally
from pipeline.chunks.sources import InputSplit
from pipeline.dataset.manifest import NUM_RESERVED_ROWS
from pipeline.features.fields import Field
from pipeline.features.lookup_table import Lookup
from pipeline.features.moments import Moments, numbers_of
from pipeline.features.vocabulary import Counter, fields_of, frequent, pairs_of
from pipeline.kernels.hashing import TRAIN
from pipeline.passes import duplicates
from pipeline.passes.duplicates import Partitions, Sightings
from pipeline.passes.tasks import Batches, Reader, chunks_of
from pipeline.spark.workers import settle

#: Rows of the first pass: pairs of one vocabulary partition, sightings of one of `duplicates.Partitions`, or under
#: NO_PART the tally of a task as JSON, or under NUMBERS_PART the moments of its numeric fields.
COUNTED = "part int, blob binary"
COUNTED_SCHEMA = pa.schema([("part", pa.int32()), ("blob", pa.binary())])
NO_PART, NUMBERS_PART = -1, -2
BASE_PART = -3  # pairs of ids that the base has, as merging leaves them
BASE_LOOKUP = "base"
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
        numerics = () if self.base else catalogue.numerics  # a base has their moments already
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
        settle()
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
        pair_P2 = counter.pairs()
        if self.base:
            lookup = Lookup.load(self.base(), BASE_LOOKUP)
            is_known_P = lookup.indices_of(fields_of(pair_P2), pair_P2[:, 0]) >= NUM_RESERVED_ROWS
            yield _counted(BASE_PART, pair_P2[is_known_P].tobytes())
            pair_P2 = pair_P2[~is_known_P]
        yield _counted(self.part_keys[0], frequent(pair_P2, self.fields).tobytes())

    def _handed_on(self, counter: Counter) -> Batches:
        for part, blob in counter.parts(len(self.part_keys)):
            yield _counted(self.part_keys[part], blob)


def _counted(part: int, blob: bytes) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([part], pa.int32()), pa.array([blob], pa.binary())], schema=COUNTED_SCHEMA
    )
