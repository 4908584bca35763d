"""The feed's independent reference: the tiny dataset read row by row in Python, and a batch taken apart likewise."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tiny_dataset import FIELDS

from pipeline.dataset.manifest import Manifest
from training.feed.batch import UNKNOWN_GROUP, Bags, Batch
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.feed.settings import FeedSettings

POOLING = {"user_brands": "mean", "item_intention": "mean", "user_item_brands": "sum"}
Bag = list[tuple[int, float]]


def plan_of(manifest: Manifest, **settings: Any) -> Plan:
    return Plan(manifest.files_of("train"), **{"batch_size": 48, "lanes": 4, "seed": 5} | settings)


def feed_of(path: Path | str, manifest: Manifest, plan: Plan | None = None, **settings: Any) -> Feed:
    ranks = {"rank": 0, "world_size": 1} | {key: settings.pop(key) for key in ("rank", "world_size") if key in settings}
    fields, sampler = settings.pop("fields", None), settings.pop("sampler", None)
    return Feed(
        str(path),
        manifest,
        "train",
        plan or plan_of(manifest),
        pooling=POOLING,
        fields=fields,
        settings=FeedSettings(**settings),
        sampler=sampler,
        **ranks,
    )


def pooled(ids: list[int], weights: list[float], pooling: str) -> Bag:
    total = sum(abs(weight) for weight in weights) if pooling == "mean" else 1.0
    return [(index, weight / total if total else 0.0) for index, weight in zip(ids, weights, strict=True)]


def slow_reading(path: Path, manifest: Manifest, split: str = "train") -> dict[int, dict[str, Any]]:
    """Map impression_id to everything about it, by a Python loop over Arrow's own conversion to Python values."""
    impressions: dict[int, dict[str, Any]] = {}
    for file in manifest.files_of(split):
        for row in pq.read_table(path / file.path).to_pylist():
            starts = dict.fromkeys(FIELDS, 0)
            for place, impression_id in enumerate(row["impression_id"]):
                found: dict[str, Any] = {label: row[label][place] for label in manifest.labels}
                found |= {"context_id": row["context_id"], "group_id": row["group_id"]}
                for name, (_, scope, arity, weighted, _) in FIELDS.items():
                    if arity == "one":
                        found[name] = [(row[name] if scope == "context" else row[name][place], 1.0)]
                        continue
                    start, stop = 0, len(row[name])
                    if scope == "impression":
                        start = starts[name]
                        starts[name] = stop = start + row[f"{name}__length"][place]
                    ids = row[name][start:stop]
                    weights = row[f"{name}__weight"][start:stop] if weighted else [1.0] * len(ids)
                    found[name] = pooled(ids, weights, POOLING[name])
                impressions[impression_id] = found
    return impressions


def bags_of(bags: Bags, fields: list[str], num_bags: int) -> list[dict[str, Bag]]:
    """Return one dictionary a bag, by walking the field-major layout."""
    assert len(bags.lengths) == len(fields) * num_bags
    assert len(bags.values) == len(bags.weights) == int(bags.lengths.sum())
    found: list[dict[str, Bag]] = [{} for _ in range(num_bags)]
    at = 0
    for field, name in enumerate(fields):
        for bag in range(num_bags):
            stop = at + int(bags.lengths[field * num_bags + bag])
            found[bag][name] = list(zip(bags.values[at:stop].tolist(), bags.weights[at:stop].tolist(), strict=True))
            at = stop
    return found


def batch_reading(batch: Batch, fields: list[str]) -> dict[int, dict[str, Any]]:
    """Read from a batch what `slow_reading` reads from files."""
    contexts = bags_of(batch.context, [name for name in fields if FIELDS[name][1] == "context"], batch.num_contexts)
    impressions = bags_of(
        batch.impression, [name for name in fields if FIELDS[name][1] == "impression"], batch.num_impressions
    )
    found = {}
    for place, impression_id in enumerate(batch.impression_id.tolist()):
        context = int(batch.context_of_impression[place])
        group_id = int(batch.group_id[context])
        found[impression_id] = {
            **{label: int(values[place]) for label, values in batch.labels.items()},
            "context_id": batch.context_id[context],
            "group_id": None if group_id == UNKNOWN_GROUP else group_id,
            **contexts[context],
            **impressions[place],
        }
    assert len(found) == batch.num_impressions, "an impression came twice"
    return found


def assert_same(found: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for impression_id, wanted in expected.items():
        for key, value in found[impression_id].items():
            if not isinstance(value, list):
                assert value == wanted[key], (impression_id, key)
                continue
            assert [index for index, _ in value] == [index for index, _ in wanted[key]], (impression_id, key)
            for (_, weight), (_, wanted_weight) in zip(value, wanted[key], strict=True):
                assert math.isclose(weight, wanted_weight, rel_tol=1e-6), (impression_id, key)


def epoch_reading(feed: Feed, epoch: int = 0, start_step: int = 0, fields: list[str] | None = None) -> list[dict]:
    return [batch_reading(batch, fields or list(FIELDS)) for batch in feed.batches(epoch, start_step)]


def merged(steps: list[dict]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for step in steps:
        assert not found.keys() & step.keys(), "an impression came twice"
        found |= step
    return found
