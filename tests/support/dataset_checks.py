"""Read a dataset back through its vocabularies and hold it against tests/support/references/aliccp.py, value by value."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from statistics import mean, pvariance
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from references.aliccp import Line, Period, is_validation, read_period, splitmix64

from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.features.fields import Catalogue, Field, catalogue

PERIOD_OF = {"train": "train", "validation": "train", "test": "test"}


def decoded_contexts(out: Path, split: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Decode context rows: raw ids instead of indices, -1 for an id out of vocabulary; one dict a row.

    Hashed fields keep their indices.
    """
    raw_ids = {}
    with_ids = [entry for entry in manifest.fields if entry.vocabulary]
    for entry in with_ids:
        table = pq.read_table(out / entry.vocabulary)
        assert table.column("index").to_pylist() == list(range(2, entry.num_rows))
        raw_ids[entry.name] = [None, -1, *table.column("raw_id").to_pylist()]
    for file in manifest.files:
        for row in pq.read_table(out / file.path).to_pylist() if file.split == split else ():
            for entry in with_ids:
                ids = raw_ids[entry.name]
                value = row[entry.name]
                row[entry.name] = [ids[index] for index in value] if isinstance(value, list) else ids[value]
            yield row


def expected_values(line: Line, entry: Field, kept: dict[str, set[int]]) -> list[tuple[int, float]]:
    def seen(value: int) -> int:
        if entry.hash_buckets:
            return 2 + splitmix64(value) % entry.hash_buckets
        return value if value in kept[entry.raw_id] else -1

    return [(seen(value), weight) for name, value, weight in line.values if name == entry.raw_id]


def number_of(line: Line, raw_id: str) -> float | None:
    return next((weight for name, _, weight in line.values if name == raw_id), None)


def bucket_of(number: float | None, boundaries: list[float]) -> int:
    """Return 0 if missing, else 2 and one more for each boundary, as float32, that the number reaches."""
    return 0 if number is None else 2 + sum(number >= float(np.float32(boundary)) for boundary in boundaries)


def moments(period: Period, entry: Field, validation: float, seed: int) -> tuple[float, float]:
    """Compute mean and population standard deviation over the lines of train contexts that have the number, in exact fractions."""
    of_scope = [line for line in period.parsed if len(line.raw.split(b",")) == (3 if entry.scope == "context" else 6)]
    numbers = [
        Fraction(value)
        for line in of_scope
        if line.key is not None and not is_validation(line.key, validation, seed)
        and (value := number_of(line, entry.raw_id)) is not None
    ]  # fmt: skip
    return (float(mean(numbers)), math.sqrt(pvariance(numbers))) if numbers else (0.0, 0.0)


def ranked(counter: Counter[int], min_count: int) -> list[tuple[int, int]]:
    """Sort (id, count) by falling count, ties by raw id."""
    return sorted(((value, n) for value, n in counter.items() if n >= min_count), key=lambda pair: (-pair[1], pair[0]))


def base_ids(base: Path) -> dict[str, list[int]]:
    """Map raw name to the ids that a base has, in its order."""
    entries = [entry for entry in load_manifest(base).fields if entry.vocabulary]
    return {entry.raw_id: pq.read_table(base / entry.vocabulary)["raw_id"].to_pylist() for entry in entries}


def kept_ids(
    period: Period, fields: Catalogue, validation: float, seed: int, base: dict[str, list[int]]
) -> dict[str, dict[int, int]]:
    """Count ids over the lines of train contexts, by raw name: all ids of the base, then new ones that are frequent."""
    counts: dict[str, Counter[int]] = {entry.raw_id: Counter() for entry in fields.fields}
    for line in period.parsed:
        assert line.key is not None
        if not is_validation(line.key, validation, seed):
            for name, value, _ in line.values:
                counts[name][value] += 1
    kept: dict[str, dict[int, int]] = {}
    for entry in fields.fields:
        if not entry.reads_numbers:
            counter = counts[entry.raw_id]
            old = {value: counter.pop(value, 0) for value in base.get(entry.raw_id, [])}
            room = None if entry.max_ids is None else max(entry.max_ids - len(old), 0)
            kept[entry.raw_id] = old | dict(ranked(counter, entry.min_count)[:room])
    return kept


def assert_dataset_equals_reference(raw: Path, out: Path, settings: PreprocessSettings) -> None:
    manifest = load_manifest(out)
    vocabulary = settings.vocabulary
    fields = catalogue(settings.features, vocabulary.min_count, max_ids=vocabulary.max_ids)
    checks = asdict(settings.checks)
    periods = {period: read_period(raw, period, fields, checks) for period in ("train", "test")}
    validation, seed = settings.split.validation, settings.seed
    base = settings.vocabulary.base
    counts = kept_ids(periods["train"], fields, validation, seed, base_ids(Path(base)) if base else {})
    for entry in manifest.fields:
        if entry.hash_buckets:
            assert (entry.num_rows, entry.vocabulary) == (entry.hash_buckets + 2, "")
            continue
        if entry.kind == "bucketized":
            boundaries = settings.features.fields[entry.name].boundaries
            assert boundaries
            assert (entry.num_rows, entry.vocabulary, entry.mean) == (len(boundaries) + 3, "", None)
            assert entry.parameters == {"boundaries": boundaries}
            continue
        if entry.kind == "numeric":
            wanted_moments = moments(periods["train"], fields[entry.name], validation, seed)
            if base:
                wanted_moments = next(
                    (old.mean, old.std) for old in load_manifest(base).fields if old.name == entry.name
                )
            assert (entry.num_rows, entry.vocabulary, (entry.mean, entry.std)) == (0, "", wanted_moments)
            continue
        table = pq.read_table(out / entry.vocabulary)
        order = list(counts[entry.raw_id].items())
        assert list(zip(table["raw_id"].to_pylist(), table["count"].to_pylist(), strict=True)) == order
    kept = {raw_id: set(counter) for raw_id, counter in counts.items()}
    for split, name in PERIOD_OF.items():
        period = periods[name]
        wanted = {
            key: lines
            for key, lines in period.rows().items()
            if split == "test" or is_validation(key, validation, seed) == (split == "validation")
        }
        seen: dict[str, list[int]] = {}
        for row in decoded_contexts(out, split, manifest):
            key = row["context_id"]
            start = len(seen.setdefault(key, []))
            lines = wanted[key][start : start + settings.rows.max_impressions]
            assert_row_equals(row, period.contexts[key], lines, fields, kept)
            seen[key] += row["impression_id"]
        assert {key: [line.sample_id for line in lines] for key, lines in wanted.items()} == seen
    assert_quarantine_equals(out, manifest, periods)


def assert_row_equals(
    row: dict[str, Any], context: Line, lines: list[Line], fields: Catalogue, kept: dict[str, set[int]]
) -> None:
    assert row["impression_id"] == [line.sample_id for line in lines]
    assert row["click"] == [line.click for line in lines]
    assert row["conversion"] == [line.click & line.buy for line in lines]
    users = [value for name, value, _ in context.values if name == "101"]
    assert row["group_id"] == (users[0] if users else None)
    for entry in fields.fields:
        owners = [context] if entry.scope == "context" else lines
        if entry.reads_numbers:
            numbers: list[float | None] = [number_of(line, entry.raw_id) for line in owners]
            if entry.kind == "bucketized":
                numbers = [bucket_of(number, entry.parameters["boundaries"]) for number in numbers]
            assert row[entry.name] == (numbers[0] if entry.scope == "context" else numbers), entry.name
            continue
        expected = [expected_values(line, entry, kept) for line in owners]
        if entry.arity == "one":
            missing = 0 if entry.hash_buckets else None
            values = [bag[0][0] if bag else missing for bag in expected]
            assert row[entry.name] == (values[0] if entry.scope == "context" else values), entry.name
            continue
        assert row[entry.name] == [value for bag in expected for value, _ in bag], entry.name
        if entry.weighted:
            assert row[f"{entry.name}__weight"] == [weight for bag in expected for _, weight in bag], entry.name
        if entry.scope == "impression":
            assert row[f"{entry.name}__length"] == [len(bag) for bag in expected], entry.name


def assert_quarantine_equals(out: Path, manifest: Manifest, periods: dict[str, Period]) -> None:
    expected = sorted(
        (rejected.source, rejected.offset, rejected.reason, rejected.raw)
        for period in periods.values()
        for rejected in period.rejected
    )
    found = sorted(
        (row["source"], row["offset"], row["reason"], row["line"])
        for file in manifest.audit["quarantine"]
        for row in pq.read_table(out / file["path"]).to_pylist()
    )
    assert found == expected
    by_reason = Counter(reason for _, _, reason, _ in expected)
    assert {reason: n for reason, n in manifest.audit["quarantined"].items() if n} == dict(by_reason)
    for grain, table in (("contexts", "common_features"), ("impressions", "sample_skeleton")):
        lines = manifest.audit["lines"]
        read = {split: lines[split][grain]["read"] for split in lines}
        assert read["train"] + read["validation"] == periods["train"].num_lines[table]
        assert read["test"] == periods["test"].num_lines[table]
