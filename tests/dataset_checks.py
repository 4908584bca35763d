"""Read a dataset back through its vocabularies and hold it against tests/aliccp_reference.py, value by value."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from statistics import mean, pvariance
from typing import Any

import pyarrow.parquet as pq
from aliccp_reference import Line, Period, is_validation, read_period

from pipeline.fields import Catalogue, Field, catalogue
from pipeline.manifest import Manifest, load_manifest
from pipeline.settings import PreprocessSettings

PERIOD_OF = {"train": "train", "validation": "train", "test": "test"}


def decoded_contexts(out: Path, split: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Context rows with raw ids instead of indices, -1 for an id out of vocabulary; one dict a row."""
    raw_ids = {}
    categorical = [entry for entry in manifest.fields if entry.kind == "categorical"]
    for entry in categorical:
        table = pq.read_table(out / entry.vocabulary)
        assert table.column("index").to_pylist() == list(range(2, entry.num_rows))
        raw_ids[entry.name] = [None, -1, *table.column("raw_id").to_pylist()]
    for file in manifest.files:
        for row in pq.read_table(out / file.path).to_pylist() if file.split == split else ():
            for entry in categorical:
                ids = raw_ids[entry.name]
                value = row[entry.name]
                row[entry.name] = [ids[index] for index in value] if isinstance(value, list) else ids[value]
            yield row


def expected_values(line: Line, raw_id: str, kept: dict[str, set[int]]) -> list[tuple[int, float]]:
    return [(value if value in kept[raw_id] else -1, weight) for name, value, weight in line.values if name == raw_id]


def number_of(line: Line, raw_id: str) -> float | None:
    return next((weight for name, _, weight in line.values if name == raw_id), None)


def moments(period: Period, entry: Field, validation: float, seed: int) -> tuple[float, float]:
    """(mean, population standard deviation) over the lines of train contexts that have the number, in exact fractions."""
    of_scope = [line for line in period.parsed if len(line.raw.split(b",")) == (3 if entry.scope == "context" else 6)]
    numbers = [
        Fraction(value)
        for line in of_scope
        if line.key is not None and not is_validation(line.key, validation, seed)
        and (value := number_of(line, entry.raw_id)) is not None
    ]  # fmt: skip
    return (float(mean(numbers)), math.sqrt(pvariance(numbers))) if numbers else (0.0, 0.0)


def kept_ids(period: Period, fields: Catalogue, validation: float, seed: int) -> dict[str, Counter[int]]:
    """raw name → id → count over the lines of train contexts, where it reaches the minimum."""
    counts: dict[str, Counter[int]] = {entry.raw_id: Counter() for entry in fields.fields}
    for line in period.parsed:
        assert line.key is not None
        if not is_validation(line.key, validation, seed):
            for name, value, _ in line.values:
                counts[name][value] += 1
    return {
        entry.raw_id: Counter({value: n for value, n in counts[entry.raw_id].items() if n >= entry.min_count})
        for entry in fields.fields
    }


def assert_dataset_equals_reference(raw: Path, out: Path, settings: PreprocessSettings) -> None:
    manifest = load_manifest(out)
    fields = catalogue(settings.features, settings.vocabulary.min_count)
    checks = asdict(settings.checks)
    periods = {period: read_period(raw, period, fields, checks) for period in ("train", "test")}
    validation, seed = settings.split.validation, settings.seed
    counts = kept_ids(periods["train"], fields, validation, seed)
    for entry in manifest.fields:
        if entry.kind == "numeric":
            wanted_moments = moments(periods["train"], fields[entry.name], validation, seed)
            assert (entry.num_rows, entry.vocabulary, (entry.mean, entry.std)) == (0, "", wanted_moments)
            continue
        table = pq.read_table(out / entry.vocabulary)
        order = sorted(counts[entry.raw_id].items(), key=lambda pair: (-pair[1], pair[0]))
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
        if entry.is_numeric:
            numbers = [number_of(line, entry.raw_id) for line in owners]
            assert row[entry.name] == (numbers[0] if entry.scope == "context" else numbers), entry.name
            continue
        expected = [expected_values(line, entry.raw_id, kept) for line in owners]
        if entry.arity == "one":
            values = [bag[0][0] if bag else None for bag in expected]
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
