"""A small valid dataset (DESIGN §4), its files as jobs.preprocess writes them, for tests that start after preprocessing.

One field of each kind, and labels drawn from a logistic model of the fields themselves, so that a trainer sees its loss
fall. Import it as `from tiny_dataset import write_tiny_dataset` (pytest puts tests/ on the path).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.dataset.manifest import MANIFEST, DatasetFile, Manifest, ManifestField, RowGroup, Source, totals_of
from pipeline.storage.parquet_files import PARQUET_OPTIONS

INT32_LIST, FLOAT_LIST, INT64_LIST, INT8_LIST = (
    pa.list_(pa.field("element", kind, nullable=False)) for kind in (pa.int32(), pa.float32(), pa.int64(), pa.int8())
)

#: name → (raw id, scope, arity, weighted, rows of its table)
FIELDS = {
    "user_id": ("101", "context", "one", False, 40),
    "user_brands": ("127_14", "context", "many", True, 30),
    "item_id": ("205", "impression", "one", False, 50),
    "item_intention": ("210", "impression", "many", False, 20),
    "user_item_brands": ("702", "impression", "many", True, 25),
}
#: Numeric fields, where asked for: name → (raw id, scope, the field that it stands before)
NUMERIC_FIELDS = {"user_spend": ("900", "context", "user_brands"), "item_price": ("901", "impression", "item_id")}
SPLITS: Mapping[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}


@dataclass
class Context:
    """One context row: its columns as Python values, and how many impressions it has."""

    columns: dict[str, Any]
    impressions: int


def write_tiny_dataset(
    path: Path,
    *,
    num_contexts: int = 200,
    seed: int = 1,
    daction: bool = False,
    numeric: bool = False,
    max_impressions: int = 8,
    impressions_per_row_group: int = 64,
    row_groups_per_file: int = 3,
    splits: Mapping[str, float] = SPLITS,
) -> Manifest:
    """Write a dataset of `num_contexts` context rows of 1 to `max_impressions` impressions below `path`.

    `splits` gives each split's share of the contexts. A row group holds at least `impressions_per_row_group`
    impressions, or is the last of its file.
    """
    random = np.random.default_rng(seed)
    truth = {name: random.normal(0, 1, rows) for name, (_, _, _, _, rows) in FIELDS.items()}
    contexts = [_context(random, truth, number, max_impressions, daction) for number in range(num_contexts)]
    if numeric:
        for context in contexts:
            context.columns |= _numbers(random, context)
    bounds = np.rint(np.cumsum([0, *splits.values()]) * num_contexts).astype(int)
    files: list[DatasetFile] = []
    for split, start, stop in zip(splits, bounds[:-1], bounds[1:], strict=True):
        groups = _grouped(contexts[start:stop], impressions_per_row_group)
        for number, first in enumerate(range(0, len(groups), row_groups_per_file)):
            part = groups[first : first + row_groups_per_file]
            files.append(write_file(path, split, number, part, daction=daction, numeric=numeric))
    labels = {"click": "tiny", "conversion": "tiny"} | ({"daction": "tiny"} if daction else {})
    manifest = Manifest(
        settings={"tiny": True, "seed": seed},
        settings_xxh3="0" * 16,
        sources=(Source("tiny.csv", 0),),
        fields=_fields(path, contexts[: bounds[1]] if numeric else None),
        labels=labels,
        files=tuple(files),
        totals=totals_of(files),
        audit={},
    )
    write_manifest(path, manifest)
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """(Over)write the manifest of the dataset at `path`."""
    (path / MANIFEST).write_text(manifest.to_json())


def write_file(
    path: Path, split: str, number: int, groups: list[list[Context]], *, daction: bool, numeric: bool = False
) -> DatasetFile:
    """Write one Parquet file with one row group for each list of `groups`, named by its content."""
    folder = path / split
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"_staged-{number}"
    schema = tiny_schema(daction, numeric)
    with pq.ParquetWriter(staged, schema, **PARQUET_OPTIONS) as writer:
        for group in groups:
            rows = [context.columns for context in group]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=len(rows))
    content = staged.read_bytes()
    digest = xxhash.xxh3_64_hexdigest(content)
    name = f"{split}/part-{number:05d}-{digest}.parquet"
    staged.rename(path / name)
    return DatasetFile(name, split, len(content), digest, tuple(_counts(group, daction) for group in groups))


def tiny_schema(daction: bool, numeric: bool = False) -> pa.Schema:
    """Return the columns of DESIGN §4 for the fields above."""
    columns: list[tuple[str, pa.DataType]] = [("context_id", pa.string()), ("group_id", pa.int64())]
    columns += [("impression_id", INT64_LIST), ("click", INT8_LIST)]
    columns += [("daction", INT8_LIST)] if daction else []
    columns += [("conversion", INT8_LIST)]
    for name, (_, scope, arity, weighted, _) in FIELDS.items():
        columns.append((name, pa.int32() if (scope, arity) == ("context", "one") else INT32_LIST))
        if arity == "many" and scope == "impression":
            columns.append((f"{name}__length", INT32_LIST))
        if weighted:
            columns.append((f"{name}__weight", FLOAT_LIST))
    for name, (_, scope, _) in NUMERIC_FIELDS.items() if numeric else ():
        columns.append((name, pa.float32() if scope == "context" else pa.list_(pa.float32())))
    nullable = {"group_id", *(name for name, (_, scope, _) in NUMERIC_FIELDS.items() if scope == "context")}
    return pa.schema([pa.field(name, kind, nullable=name in nullable) for name, kind in columns])


def _context(
    random: np.random.Generator, truth: dict[str, np.ndarray], number: int, max_impressions: int, daction: bool
) -> Context:
    count = int(random.integers(1, max_impressions + 1))
    user = int(random.integers(0, FIELDS["user_id"][4]))
    brands, brand_weights = _bag(random, "user_brands", 6)
    items = random.integers(1, FIELDS["item_id"][4], count)
    intentions = [_bag(random, "item_intention", 3)[0] for _ in range(count)]
    crosses = [_bag(random, "user_item_brands", 3) for _ in range(count)]
    score = truth["user_id"][user] + truth["item_id"][items]
    score = score + (truth["user_brands"][brands] @ brand_weights) / max(brand_weights.sum(), 1e-9)
    score = score + [truth["user_item_brands"][ids] @ weights for ids, weights in crosses]
    click = random.random(count) < _sigmoid(1.5 * score - 0.5)
    conversion = click & (random.random(count) < _sigmoid(score - 0.5))
    acts = click & (conversion | (random.random(count) < 0.3))
    columns: dict[str, Any] = {
        "context_id": f"{number:016x}",
        "group_id": None if user == 0 else 1000 + user,
        "impression_id": (1_000_000 * (number + 1) + np.arange(count)).tolist(),
        "click": click.astype(int).tolist(),
        "conversion": conversion.astype(int).tolist(),
        "user_id": user,
        "user_brands": brands.tolist(),
        "user_brands__weight": brand_weights.tolist(),
        "item_id": items.tolist(),
        "item_intention": [int(value) for bag in intentions for value in bag],
        "item_intention__length": [len(bag) for bag in intentions],
        "user_item_brands": [int(value) for ids, _ in crosses for value in ids],
        "user_item_brands__length": [len(ids) for ids, _ in crosses],
        "user_item_brands__weight": [float(value) for _, weights in crosses for value in weights],
    }
    if daction:
        columns["daction"] = acts.astype(int).tolist()
    return Context(columns, count)


def _numbers(random: np.random.Generator, context: Context) -> dict[str, Any]:
    """Draw numbers: a tenth is missing; prices are higher where the item was clicked, so that they can be learned from."""
    spend = None if random.random() < 0.1 else float(np.float32(random.normal(50, 20)))
    prices = random.normal(10, 3, context.impressions) + 4 * np.array(context.columns["click"])
    kept = random.random(context.impressions) < 0.9
    return {
        "user_spend": spend,
        "item_price": [float(np.float32(price)) if known else None for price, known in zip(prices, kept, strict=True)],
    }


def _bag(random: np.random.Generator, name: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw none to `most` ids of a field with log counts as weights; ids of fields of arity many start at 1."""
    count = int(random.integers(0, most + 1))
    ids = random.integers(1, FIELDS[name][4], count)
    return ids, np.log(random.integers(2, 6, count)).astype(np.float32)


def _grouped(contexts: list[Context], impressions_per_row_group: int) -> list[list[Context]]:
    groups: list[list[Context]] = []
    for context in contexts:
        if not groups or sum(row.impressions for row in groups[-1]) >= impressions_per_row_group:
            groups.append([])
        groups[-1].append(context)
    return groups


def _counts(group: list[Context], daction: bool) -> RowGroup:
    def total(label: str) -> int:
        return sum(sum(context.columns[label]) for context in group)

    impressions = sum(context.impressions for context in group)
    dactions = total("daction") if daction else None
    return RowGroup(len(group), impressions, total("click"), total("conversion"), dactions)


def _fields(path: Path, train: list[Context] | None) -> tuple[ManifestField, ...]:
    """Return the fields in catalogue order; the numeric ones only where `train` is given, for their means and deviations."""
    fields = []
    for name in FIELDS:
        for numeric, (raw_id, scope, before) in NUMERIC_FIELDS.items() if train else ():
            if before == name:
                values = [context.columns[numeric] for context in train or ()]
                flat = [value for row in values for value in (row if isinstance(row, list) else [row])]
                known = np.array([value for value in flat if value is not None])
                moments = {"mean": float(known.mean()), "std": float(known.std())}
                fields.append(ManifestField(numeric, raw_id, scope, "one", False, 0, "", "", kind="numeric", **moments))
        fields.append(_field(path, name))
    return tuple(fields)


def _field(path: Path, name: str) -> ManifestField:
    raw_id, scope, arity, weighted, num_rows = FIELDS[name]
    vocabulary = f"vocabulary/{name}.parquet"
    (path / "vocabulary").mkdir(parents=True, exist_ok=True)
    index = np.arange(2, num_rows)
    table = pa.table({"raw_id": 1000 + index, "index": pa.array(index, pa.int32()), "count": np.full(len(index), 9)})
    pq.write_table(table, path / vocabulary)
    digest = xxhash.xxh3_64_hexdigest((path / vocabulary).read_bytes())
    return ManifestField(name, raw_id, scope, arity, weighted, num_rows, vocabulary, digest)


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))
