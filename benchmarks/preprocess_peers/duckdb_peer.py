"""The log in DuckDB: python -m benchmarks.preprocess_peers.duckdb_peer RAW OUT (duckdb 2.0.0)."""

import sys
from pathlib import Path

import duckdb

from benchmarks.preprocess_peers.catalogue import MIN_COUNT, PERIODS, is_weighted, raw_ids

COLUMNS = {
    "sample_skeleton": "impression_id BIGINT, click TINYINT, buy TINYINT, context_id VARCHAR, num_features INT, features VARCHAR",
    "common_features": "context_id VARCHAR, num_features INT, features VARCHAR",
}
SCOPES = {"sample_skeleton": "impression", "common_features": "context"}
KEYS = {"sample_skeleton": "impression_id", "common_features": "context_id"}


def lines(raw: Path, table: str, period: str) -> str:
    """Define a query with one row a line."""
    named = [column.split() for column in COLUMNS[table].split(", ")]
    types = ", ".join(f"'{name}': '{kind}'" for name, kind in named)
    return (
        f"read_csv('{raw}/{table}_{period}.csv', header=false, delim=',', quote='', escape='', auto_detect=false, "
        f"max_line_size=10000000, columns={{{types}}})"
    )


def values(raw: Path, table: str, period: str) -> str:
    """Define a query with one row a value: the key of its line, field, id, weight."""
    return f"""(
        SELECT {KEYS[table]} AS line, part[1] AS field, CAST(part[2] AS BIGINT) AS id, CAST(part[3] AS FLOAT) AS weight
        FROM (SELECT {KEYS[table]}, str_split(replace(feature, chr(3), chr(2)), chr(2)) AS part FROM (
            SELECT {KEYS[table]}, unnest(str_split(features, chr(1))) AS feature FROM {lines(raw, table, period)})))"""


def vocabulary(raw: Path) -> str:
    """Define a query of field, id, index: the ids of the train period that are frequent enough."""
    both = " UNION ALL ".join(f"SELECT field, id FROM {values(raw, table, 'train')}" for table in COLUMNS)
    return f"""CREATE TABLE vocabulary AS
        SELECT field, id, CAST(1 + row_number() OVER (PARTITION BY field ORDER BY n DESC, id) AS INT) AS index
        FROM (SELECT field, id, count(*) AS n FROM ({both}) GROUP BY ALL HAVING n >= {MIN_COUNT})"""


def encoded(raw: Path, table: str, period: str) -> str:
    """Define a query with one row a line: an index for a single-valued field, lists of indices and weights for others."""
    columns = ["line"]
    for raw_id, name in raw_ids(SCOPES[table], "one").items():
        columns.append(f"coalesce(first(index) FILTER (field = '{raw_id}'), 0) AS {name}")
    for raw_id, name in raw_ids(SCOPES[table], "many").items():
        for each, column in (("index", name), ("weight", f"{name}__weight"))[: 1 + is_weighted(name)]:
            columns.append(f"coalesce(list({each}) FILTER (field = '{raw_id}'), []) AS {column}")
    if table == "common_features":
        columns.append("first(id) FILTER (field = '101') AS group_id")
    return f"""(SELECT {", ".join(columns)} FROM (
        SELECT line, v.field, v.id, coalesce(index, 1) AS index, weight
        FROM {values(raw, table, period)} v LEFT JOIN vocabulary USING (field, id)) GROUP BY line)"""


def rows(raw: Path, period: str) -> str:
    """Define a query with one row a context, its impressions as lists."""
    columns = ["list(impression_id) AS impression_id", "list(click) AS click"]
    columns += ["list(click * buy) AS conversion"]
    columns += [f"list({name}) AS {name}" for name in raw_ids("impression", "one").values()]
    for name in raw_ids("impression", "many").values():
        columns.append(f"list(CAST(len({name}) AS INT)) AS {name}__length")
        for each in (name, f"{name}__weight")[: 1 + is_weighted(name)]:
            columns.append(f"flatten(list({each})) AS {each}")
    return f"""
        WITH impressions AS (
            SELECT context_id, {", ".join(columns)}
            FROM {lines(raw, "sample_skeleton", period)} JOIN {encoded(raw, "sample_skeleton", period)} ON line = impression_id
            GROUP BY context_id)
        SELECT * EXCLUDE (line) FROM impressions JOIN {encoded(raw, "common_features", period)} ON line = context_id"""


def main(raw: Path, out: Path) -> None:
    """Write the vocabulary and both periods."""
    with duckdb.connect(config={"threads": 2, "temp_directory": str(out / "spilled")}) as database:
        database.execute("SET preserve_insertion_order = false")
        database.execute(vocabulary(raw))
        database.execute(f"COPY vocabulary TO '{out}/vocabulary.parquet'")
        for period in PERIODS:
            database.execute(
                f"COPY ({rows(raw, period)}) TO '{out}/{period}.parquet' (FORMAT parquet, CODEC zstd, COMPRESSION_LEVEL 1)"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
