"""The log in plain Python, as such scripts are written: python -m benchmarks.preprocess_peers.python_peer RAW OUT.

Two passes over the lines with str.split and dictionaries; contexts lie in memory, rows go out in batches (pyarrow).
"""

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.preprocess_peers.catalogue import MIN_COUNT, PERIODS, is_weighted, raw_ids

ROWS = 2000  # of a row group
ONE = raw_ids("context", "one") | raw_ids("impression", "one")
MANY = raw_ids("context", "many") | raw_ids("impression", "many")
Index = dict[tuple[str, str], int]


def features(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (field, id, weight) of each feature."""
    for feature in text.split("\x01"):
        field, rest = feature.split("\x02")
        yield (field, *rest.split("\x03"))  # type: ignore[misc]


def lines(path: Path) -> Iterator[list[str]]:
    """Yield the columns of each line."""
    with path.open() as stream:
        for line in stream:
            yield line.rstrip("\n").split(",")


def vocabulary(raw: Path) -> Index:
    """Number the ids of the train period that are frequent enough: (field, id) → index."""
    count: Counter[tuple[str, str]] = Counter()
    for table in ("common_features", "sample_skeleton"):
        for columns in lines(raw / f"{table}_train.csv"):
            count.update((field, raw_id) for field, raw_id, _ in features(columns[-1]))
    index: Index = {}
    next_of: Counter[str] = Counter()
    for (field, raw_id), number in sorted(count.items(), key=lambda pair: (-pair[1], int(pair[0][1]))):
        if number >= MIN_COUNT:
            index[field, raw_id] = 2 + next_of[field]
            next_of[field] += 1
    return index


def encoded(text: str, scope: str, index: Index) -> dict[str, Any]:
    """Encode one line: column → index, or list of indices or weights."""
    row: dict[str, Any] = dict.fromkeys(raw_ids(scope, "one").values(), 0)
    for name in raw_ids(scope, "many").values():
        row[name] = []
        if is_weighted(name):
            row[f"{name}__weight"] = []
    for field, raw_id, weight in features(text):
        number = index.get((field, raw_id), 1)
        if field in ONE:
            row[ONE[field]] = number
            if field == "101":
                row["group_id"] = int(raw_id)
        else:
            name = MANY[field]
            row[name].append(number)
            if is_weighted(name):
                row[f"{name}__weight"].append(float(weight))
    return row


def rows(raw: Path, period: str, index: Index) -> Iterator[dict[str, Any]]:
    """Yield one row a context; the impressions of a context stand together in the log."""
    contexts = {key: text for key, _, text in lines(raw / f"common_features_{period}.csv")}
    for key, group in groupby(lines(raw / f"sample_skeleton_{period}.csv"), lambda columns: columns[3]):
        row: dict[str, Any] = {"context_id": key, "group_id": None, "impression_id": [], "click": [], "conversion": []}
        row |= encoded(contexts[key], "context", index)
        for columns in group:
            row["impression_id"].append(int(columns[0]))
            row["click"].append(int(columns[1]))
            row["conversion"].append(int(columns[1]) * int(columns[2]))
            impression = encoded(columns[5], "impression", index)
            for name in raw_ids("impression", "one").values():
                row.setdefault(name, []).append(impression[name])
            for name in raw_ids("impression", "many").values():
                row.setdefault(f"{name}__length", []).append(len(impression[name]))
                for each in (name, f"{name}__weight")[: 1 + is_weighted(name)]:
                    row.setdefault(each, []).extend(impression[each])
        yield row


def schema() -> pa.Schema:
    """Build the schema of our data files."""
    columns = [("context_id", pa.string()), ("group_id", pa.int64())]
    columns += [(name, pa.int32()) for name in raw_ids("context", "one").values()]
    columns += [("impression_id", pa.list_(pa.int64())), ("click", pa.list_(pa.int8()))]
    columns += [("conversion", pa.list_(pa.int8()))]
    columns += [(name, pa.list_(pa.int32())) for name in (*raw_ids("impression", "one").values(), *MANY.values())]
    columns += [(f"{name}__length", pa.list_(pa.int32())) for name in raw_ids("impression", "many").values()]
    columns += [(f"{name}__weight", pa.list_(pa.float32())) for name in MANY.values() if is_weighted(name)]
    return pa.schema(columns)


def main(raw: Path, out: Path) -> None:
    """Write the vocabulary and both periods."""
    index = vocabulary(raw)
    fields, ids = zip(*index, strict=True)
    pq.write_table(pa.table({"field": fields, "id": ids, "index": list(index.values())}), out / "vocabulary.parquet")
    for period in PERIODS:
        with pq.ParquetWriter(out / f"{period}.parquet", schema(), compression="zstd", compression_level=1) as writer:
            held: list[dict[str, Any]] = []
            for row in rows(raw, period, index):
                held.append(row)
                if len(held) == ROWS:
                    writer.write_table(pa.Table.from_pylist(held, schema()))
                    held = []
            if held:
                writer.write_table(pa.Table.from_pylist(held, schema()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
