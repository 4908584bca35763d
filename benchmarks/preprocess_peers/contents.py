"""What a dataset holds, in numbers that do not depend on how its rows are cut, ordered or spread over files."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.preprocess_peers.catalogue import raw_ids

_ONES = raw_ids("context", "one").values()
_CONTEXT = {*_ONES, *raw_ids("context", "many").values()}


def contents(paths: Iterable[Path]) -> dict[str, int]:
    """Return number and sum of the values of every column; context columns count once for each of their impressions.

    A context that is cut into rows repeats its columns, so each is weighted with the impressions of its row.
    """
    found: Counter[str] = Counter()
    for path in paths:
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            num_impressions = pc.list_value_length(table["impression_id"]).cast(pa.int64())
            for name in table.column_names:
                _add(found, name, table[name], num_impressions)
    return {name: found[name] for name in sorted(found)}


def _add(found: Counter[str], name: str, column: pa.ChunkedArray, num_impressions: pa.ChunkedArray) -> None:
    if name == "context_id":
        found["impressions"] += pc.sum(num_impressions).as_py()
        return
    if name.endswith("__weight"):  # float32: sums differ in the last digit, numbers do not
        column = pc.cast(pc.round(pc.multiply(pc.list_flatten(column).cast(pa.float64()), 1e5)), pa.int64())
        if name.removesuffix("__weight") in _CONTEXT:
            return  # as many as the values, which are weighted below
    elif name in _CONTEXT or name == "group_id":
        _add_context(found, name, column, num_impressions)
        return
    else:
        column = pc.list_flatten(column)
    found[f"{name}: values"] += len(column)
    found[f"{name}: sum"] += pc.sum(column).as_py() or 0


def _add_context(found: Counter[str], name: str, column: pa.ChunkedArray, num_impressions: pa.ChunkedArray) -> None:
    if name == "group_id" or name in _ONES:
        found[f"{name}: sum"] += pc.sum(pc.multiply(column.cast(pa.int64()), num_impressions)).as_py() or 0
        return
    times = pc.take(num_impressions, pc.list_parent_indices(column))
    found[f"{name}: values"] += pc.sum(times).as_py() or 0
    found[f"{name}: sum"] += pc.sum(pc.multiply(pc.list_flatten(column).cast(pa.int64()), times)).as_py() or 0
