"""Impressions a core-second: this feed beside bare pyarrow reading the same files, and their ratio.

    python benchmarks/feed.py                     # generates Ali-CCP's shape: 23 fields, 518 + 58 x 13.4 values a context
    python benchmarks/feed.py data=DATASET        # a dataset of jobs.preprocess

Both sides run in this process, interleaved, in CPU seconds of all threads (time.process_time); the median counts. A row
group that a lane's end cuts is read by both lanes: with few row groups a lane the feed reads much more than the other
side, which the last line shows. `benchmarks.train_profile` says where the feed's time goes.
"""

import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.manifest import (
    MANIFEST,
    DatasetFile,
    Manifest,
    ManifestField,
    RowGroup,
    load_manifest,
    open_location,
    totals_of,
)
from training.feed import Feed, FeedSettings
from training.memory import keep_freed_memory
from training.plan import Plan

# name: (scope, arity, weighted, table rows, mean values of a bag)
ALICCP = {
    "user_id": ("context", "one", False, 290_000, 1.0),
    **{f"user_profile_{n}": ("context", "one", False, 100, 1.0) for n in range(8)},
    "user_categories": ("context", "many", True, 6_000, 90.0),
    "user_shops": ("context", "many", True, 110_000, 170.0),
    "user_brands": ("context", "many", True, 58_000, 150.0),
    "user_intentions": ("context", "many", True, 33_000, 99.0),
    "item_id": ("impression", "one", False, 1_700_000, 1.0),
    "item_category": ("impression", "one", False, 8_500, 1.0),
    "item_shop": ("impression", "one", False, 500_000, 1.0),
    "item_brand": ("impression", "one", False, 180_000, 1.0),
    "item_intention": ("impression", "many", False, 90_000, 3.4),
    "user_item_categories": ("impression", "many", True, 7_000, 1.3),
    "user_item_shops": ("impression", "many", True, 250_000, 0.9),
    "user_item_brands": ("impression", "many", True, 100_000, 1.3),
    "user_item_intentions": ("impression", "many", True, 60_000, 1.5),
    "position": ("impression", "one", False, 5, 1.0),
}


def generate(path: Path, num_row_groups: int = 96, contexts_per_row_group: int = 280, seed: int = 1) -> None:
    """One file of `num_row_groups` row groups of about 16,000 impressions."""
    random = np.random.default_rng(seed)
    (path / "train").mkdir(parents=True)
    staged = path / "train" / "staged"
    writer, counts = None, []
    for _ in range(num_row_groups):
        table, group = _row_group(random, contexts_per_row_group)
        if writer is None:
            writer = pq.ParquetWriter(
                staged, table.schema, compression="zstd", compression_level=1, use_dictionary=False
            )
        writer.write_table(table, row_group_size=len(table))
        counts.append(group)
    writer.close()
    digest = xxhash.xxh3_64_hexdigest(staged.read_bytes())
    name = f"train/part-00000-{digest}.parquet"
    file = DatasetFile(name, "train", staged.stat().st_size, digest, tuple(counts))
    staged.rename(path / name)
    fields = tuple(
        ManifestField(name, name, scope, arity, weighted, rows, "", "")
        for name, (scope, arity, weighted, rows, _) in ALICCP.items()
    )
    labels = {"click": "", "conversion": ""}
    manifest = Manifest({}, "", (), fields, labels, (file,), totals_of([file]), {})
    (path / MANIFEST).write_text(manifest.to_json())


def _row_group(random: np.random.Generator, num_contexts: int) -> tuple[pa.Table, RowGroup]:
    per_context = np.minimum(random.geometric(1 / 57.9, num_contexts), 300)
    offsets = np.concatenate([[0], np.cumsum(per_context)]).astype(np.int32)
    num_impressions = int(offsets[-1])
    click = (random.random(num_impressions) < 0.039).astype(np.int8)
    conversion = click * (random.random(num_impressions) < 0.0054).astype(np.int8)

    def per_row(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values))

    columns = {
        "context_id": pa.array([f"{number:016x}" for number in random.integers(0, 2**62, num_contexts)]),
        "group_id": pa.array(random.integers(0, 400_000, num_contexts)),
        "impression_id": per_row(random.integers(0, 42_000_000) + np.arange(num_impressions)),
        "click": per_row(click),
        "conversion": per_row(conversion),
    }
    for name, (scope, arity, weighted, rows, mean) in ALICCP.items():
        num_bags = num_contexts if scope == "context" else num_impressions
        lengths = np.ones(num_bags, np.int64) if arity == "one" else random.poisson(mean, num_bags)
        ids = np.minimum(random.zipf(1.3, int(lengths.sum())), rows - 1).astype(np.int32)
        bag_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        row_offsets = bag_offsets if scope == "context" else bag_offsets[offsets]
        weights = np.log(2 + random.geometric(0.4, len(ids))).astype(np.float32)
        if (scope, arity) == ("context", "one"):
            columns[name] = pa.array(ids)
            continue
        columns[name] = pa.ListArray.from_arrays(row_offsets, pa.array(ids))
        if (scope, arity) == ("impression", "many"):
            columns[f"{name}__length"] = per_row(lengths.astype(np.int32))
        if weighted:
            columns[f"{name}__weight"] = pa.ListArray.from_arrays(row_offsets, pa.array(weights))
    group = RowGroup(num_contexts, num_impressions, int(click.sum()), int(conversion.sum()))
    return pa.table(columns), group


def bare(dataset: str, manifest: Manifest, split: str) -> int:
    """Read every row group of `split` into an Arrow table, in one thread, and drop it."""
    filesystem, root = open_location(dataset)
    num_impressions = 0
    for file in manifest.files_of(split):
        with filesystem.open_input_file(f"{root}/{file.path}") as stream, pq.ParquetFile(stream) as parquet:
            for number in range(parquet.num_row_groups):
                parquet.read_row_group(number, use_threads=False)
        num_impressions += sum(group.impressions for group in file.row_groups)
    return num_impressions


def fed(feed: Feed, epoch: int) -> int:
    """One epoch of batches, dropped as they come."""
    return sum(batch.num_impressions for batch in feed.batches(epoch))


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    dataset = settings.get("data")
    keep_freed_memory()  # as jobs.train does; both sides gain from it
    with tempfile.TemporaryDirectory() as scratch:
        if dataset is None:
            dataset = f"{scratch}/dataset"
            generate(Path(dataset))
        manifest = load_manifest(dataset)
        plan = Plan(manifest.files_of("train"), batch_size=int(settings.get("batch_size", 5000)), lanes=8, seed=1)
        pooling = {entry.name: "mean" for entry in manifest.fields if entry.arity == "many"}
        feed = Feed(dataset, manifest, "train", plan, rank=0, world_size=1, pooling=pooling, settings=FeedSettings())
        sides = {"bare pyarrow": lambda epoch: bare(dataset, manifest, "train"), "feed": lambda epoch: fed(feed, epoch)}
        fed(feed, 0)  # compiles, and verifies the checksums
        per_core_s: dict[str, list[float]] = {side: [] for side in sides}
        for epoch in range(int(settings.get("runs", 5))):
            for side, run in sides.items():
                start_s = time.process_time()
                num_impressions = run(epoch)
                per_core_s[side].append(num_impressions / (time.process_time() - start_s))
    print(
        f"{platform.processor() or platform.machine()}, {num_impressions:,} impressions, {len(manifest.fields)} fields"
    )
    num_groups = sum(len(file.row_groups) for file in manifest.files_of("train"))
    medians = {side: statistics.median(figures) for side, figures in per_core_s.items()}
    for side, figure in medians.items():
        print(f"{side:13s} {figure / 1e6:6.2f}M impressions a core-second, {1e9 / figure:6.1f} ns each")
    print(f"ratio         {medians['feed'] / medians['bare pyarrow']:6.2f}")
    print(f"row groups: {num_groups}, of which the feed reads {len(plan.reads(0, 0, 1)) / num_groups - 1:.0%} twice")


if __name__ == "__main__":
    main()
