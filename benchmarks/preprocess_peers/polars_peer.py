"""The log in Polars, streaming: python -m benchmarks.preprocess_peers.polars_peer RAW OUT (polars 2.1.0)."""

import sys
from pathlib import Path

import polars as pl

from benchmarks.preprocess_peers.catalogue import MIN_COUNT, PERIODS, is_weighted, raw_ids

COLUMNS = {
    "sample_skeleton": ["impression_id", "click", "buy", "context_id", "num_features", "features"],
    "common_features": ["context_id", "num_features", "features"],
}
SCOPES = {"sample_skeleton": "impression", "common_features": "context"}
TEXT = {"context_id": pl.String, "features": pl.String}


def lines(raw: Path, table: str, period: str) -> pl.LazyFrame:
    """Read one row a line."""
    schema = {name: TEXT.get(name, pl.Int64) for name in COLUMNS[table]}
    path = raw / f"{table}_{period}.csv"
    return pl.scan_csv(path, has_header=False, quote_char=None, schema=schema).with_row_index("line")


def values(raw: Path, table: str, period: str) -> pl.LazyFrame:
    """Explode into one row a value: line, field, id, weight."""
    scope = SCOPES[table]
    known = pl.Enum([*raw_ids(scope, "one"), *raw_ids(scope, "many")])
    feature = pl.col("features")
    parts = lines(raw, table, period).select("line", feature.str.split("\x01")).explode("features")
    parts = parts.select("line", feature.str.split_exact("\x02", 1).struct.rename_fields(["field", "rest"]))
    parts = parts.unnest("features").with_columns(
        pl.col("rest").str.split_exact("\x03", 1).struct.rename_fields(["id", "weight"])
    )
    return parts.unnest("rest").select(
        "line",
        pl.col("field").cast(known, strict=False),
        pl.col("id").cast(pl.Int64),
        pl.col("weight").cast(pl.Float32),
    )


def vocabulary(raw: Path, table: str) -> pl.DataFrame:
    """Number the ids of the train period that are frequent enough: field, id, index."""
    counted = values(raw, table, "train").group_by("field", "id").len().filter(pl.col("len") >= MIN_COUNT)
    ordered = counted.collect(engine="streaming").sort(["field", "len", "id"], descending=[False, True, False])
    return ordered.select("field", "id", index=(pl.int_range(pl.len()).over("field") + 2).cast(pl.Int32))


def encoded(raw: Path, table: str, period: str, vocabularies: dict[str, pl.DataFrame]) -> pl.LazyFrame:
    """Encode one row a line: an index for a single-valued field, lists of indices and weights for others."""
    scope = SCOPES[table]
    index = values(raw, table, period).join(vocabularies[table].lazy(), on=["field", "id"], how="left")
    index = index.with_columns(pl.col("index").fill_null(1))
    columns = []
    for raw_id, name in raw_ids(scope, "one").items():
        columns.append(pl.col("index").filter(pl.col("field") == raw_id).first().fill_null(0).alias(name))
    for raw_id, name in raw_ids(scope, "many").items():
        columns.append(pl.col("index").filter(pl.col("field") == raw_id).alias(name))
        if is_weighted(name):
            columns.append(pl.col("weight").filter(pl.col("field") == raw_id).alias(f"{name}__weight"))
    if table == "common_features":
        columns.append(pl.col("id").filter(pl.col("field") == "101").first().alias("group_id"))
    else:
        columns.append(pl.len())
    return (
        lines(raw, table, period).drop("features", "num_features").join(index.group_by("line").agg(columns), on="line")
    )


def rows(raw: Path, period: str, vocabularies: dict[str, pl.DataFrame]) -> pl.LazyFrame:
    """Group into one row a context, its impressions as lists."""
    impressions = encoded(raw, "sample_skeleton", period, vocabularies)
    columns = [
        pl.col("impression_id"),
        pl.col("click").cast(pl.Int8),
        (pl.col("click") * pl.col("buy")).cast(pl.Int8).alias("conversion"),
        *(pl.col(name) for name in raw_ids("impression", "one").values()),
    ]
    for name in raw_ids("impression", "many").values():
        columns += [pl.col(name).list.len().cast(pl.Int32).alias(f"{name}__length")]
        columns += [pl.col(each).explode().drop_nulls() for each in (name, f"{name}__weight")[: 1 + is_weighted(name)]]
    grouped = impressions.group_by("context_id").agg(columns)
    contexts = encoded(raw, "common_features", period, vocabularies).drop("line")
    return contexts.join(grouped, on="context_id", how="inner")


def main(raw: Path, out: Path) -> None:
    """Write the vocabularies and both periods."""
    vocabularies = {table: vocabulary(raw, table) for table in COLUMNS}
    for table, frame in vocabularies.items():
        frame.write_parquet(out / f"vocabulary-{table}.parquet")
    for period in PERIODS:
        rows(raw, period, vocabularies).sink_parquet(
            out / f"{period}.parquet", compression="zstd", compression_level=1, statistics=False, engine="streaming"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
