"""Requests to check an export with: the raw values that the rows of a dataset stand for, and made-up ones with every oddity."""

# Shapes: N ids of a vocabulary.

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.dataset.kinds import NUMBER
from pipeline.dataset.manifest import (
    MISSING,
    NUM_RESERVED_ROWS,
    OUT_OF_VOCABULARY,
    Manifest,
    ManifestField,
    dataset_files,
)
from pipeline.dataset.raw_ids import LARGEST_ID
from pipeline.dataset.vocabulary_file import read_vocabulary
from pipeline.kernels.hashing import MULTIPLIERS
from training.export.schema import form_of


@dataclass(frozen=True)
class SampleRequest:
    """A context with its candidates, in raw values, and the ids of the impressions that they were."""

    context: dict[str, Any]
    candidates: list[dict[str, Any]]
    impression_ids: tuple[int, ...] = ()


class RawValuesOfRows:
    """A raw value for each row of each field's table: what preprocessing would turn into that row."""

    def __init__(self, location: str, manifest: Manifest) -> None:
        """Read the vocabularies at `location`."""
        self._manifest = manifest
        self._ids = {entry.name: _raw_values(location, entry) for entry in manifest.fields if form_of(entry) == "id"}

    def of_rows(self, name: str, rows: Sequence[int]) -> list[Any]:
        """Return the ids of rows of a field; None for the row that means missing."""
        ids = self._ids[name]
        return [None if row == MISSING else ids[row] for row in rows]

    def record(self, scope: str, row: Mapping[str, Any], begin: dict[str, int] | None, place: int) -> dict[str, Any]:
        """Return the raw values of a context row, or of its impression `place`, whose values begin at `begin`."""
        found: dict[str, Any] = {}
        for entry in self._manifest.fields_of(scope):
            values, name = row[entry.name], entry.name
            form = form_of(entry)
            if entry.arity == "many" or form == "vector":
                start, stop = 0, len(values)
                if begin is not None:
                    start = begin.get(name, 0)
                    stop = start + (entry.num_inputs or row[f"{name}__length"][place])
                    begin[name] = stop
                chosen = values[start:stop]
                if form == "vector":
                    found[name] = None if np.isnan(chosen[0]) else chosen
                    continue
                found[name] = self.of_rows(name, chosen)
                if entry.weighted:
                    found[f"{name}__weight"] = row[f"{name}__weight"][start:stop]
                continue
            value = values if begin is None else values[place]
            if form == "id":
                found[name] = self.of_rows(name, [value])[0]
            else:
                found[name] = _number_in_bucket(entry, value) if form == "bucket" else value
        return {name: value for name, value in found.items() if value is not None}

    def made_up(self, random: np.random.Generator, num_candidates: int) -> SampleRequest:
        """Draw a request: every field there, missing, empty, with unknown ids, with weights of any sign and 0."""
        return SampleRequest(
            self._drawn(random, "context"), [self._drawn(random, "impression") for _ in range(num_candidates)]
        )

    def _drawn(self, random: np.random.Generator, scope: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in self._manifest.fields_of(scope):
            if random.random() < 0.15:
                continue
            form = form_of(entry)
            if form == "id":
                count = 1 if entry.arity == "one" else int(random.integers(0, 5))
                first = NUM_RESERVED_ROWS if entry.hash_buckets else OUT_OF_VOCABULARY
                values = self.of_rows(entry.name, random.integers(first, entry.num_rows, count).tolist())
                found[entry.name] = values if entry.arity == "many" else values[0]
                if entry.weighted:
                    found[f"{entry.name}__weight"] = random.choice([0.0, 1.0, -0.5, 2.70805, 1e-3], count).tolist()
            elif form == "vector":
                found[entry.name] = random.normal(0, 2, entry.num_inputs).astype(np.float32).tolist()
            else:
                mean = entry.mean if entry.stored == NUMBER and isinstance(entry.mean, float) else 1.0
                found[entry.name] = float(np.float32(mean + random.normal(0, 5)))
        return found


def samples_of_dataset(
    data: str, manifest: Manifest, split: str, values: RawValuesOfRows, num_impressions: int
) -> Iterator[SampleRequest]:
    """Yield the context rows of a split with raw values, in the order of its files, until there are `num_impressions`."""
    files = dataset_files(data)
    for file in manifest.files_of(split):
        files.check_size(file.path, file.bytes)
        with files.open(file.path) as stream, files.readable(file.path), pq.ParquetFile(stream) as parquet:
            for batch in parquet.iter_batches(256):
                for row in batch.to_pylist():
                    if num_impressions <= 0:
                        return
                    ids = row["impression_id"][:num_impressions]
                    begin: dict[str, int] = {}
                    candidates = [values.record("impression", row, begin, place) for place in range(len(ids))]
                    yield SampleRequest(values.record("context", row, None, 0), candidates, tuple(ids))
                    num_impressions -= len(ids)


def _raw_values(location: str, entry: ManifestField) -> dict[int, Any]:
    """Return row → an id or text that has it; the row out of vocabulary has an id that the vocabulary lacks."""
    if entry.hash_buckets:
        return _IdsOfBuckets(entry.hash_buckets)
    table = read_vocabulary(dataset_files(location), entry)
    id_N = table["raw_id"].to_numpy()
    texts = table["text"].to_pylist() if "text" in table.column_names else [None] * len(id_N)
    found: dict[int, Any] = {
        row: (text if text is not None else str(raw_id) if row % 2 else raw_id)
        for row, (raw_id, text) in enumerate(zip(id_N.tolist(), texts, strict=True), NUM_RESERVED_ROWS)
    }
    known = set(id_N.tolist())
    found[OUT_OF_VOCABULARY] = next(number for number in range(LARGEST_ID, 0, -1) if number not in known)
    return found


class _IdsOfBuckets(dict[int, Any]):
    """Row → an id that is hashed into it, found when it is asked for: the hash is a bijection of 64 bits."""

    def __init__(self, num_buckets: int) -> None:
        super().__init__()
        self._num_buckets = num_buckets

    def __missing__(self, row: int) -> int:
        words = range(row - NUM_RESERVED_ROWS, 1 << 64, self._num_buckets)
        self[row] = next(raw_id for word in words if (raw_id := unmixed(word)) <= LARGEST_ID)
        return self[row]


def unmixed(word: int) -> int:
    """Return the number whose pipeline.kernels.hashing.mix is `word`."""
    for shift, multiplier in ((31, MULTIPLIERS[1]), (27, MULTIPLIERS[0])):
        word = _unshifted(word, shift) * pow(multiplier, -1, 1 << 64) % (1 << 64)
    return _unshifted(word, 30)


def _unshifted(word: int, shift: int) -> int:
    """Return the x of which word = x ^ (x >> shift)."""
    found = word
    for _ in range(64 // shift):
        found = word ^ (found >> shift)
    return found


def _number_in_bucket(entry: ManifestField, row: int) -> float | None:
    """Return a number of the bucket with this row; None for the row that means missing."""
    if row == MISSING:
        return None
    boundaries = np.array(entry.parameters["boundaries"], np.float32)
    bucket = row - NUM_RESERVED_ROWS
    return float(boundaries[bucket - 1] if bucket else np.nextafter(boundaries[0], np.float32(-np.inf)))
