"""Impressions a core-second: this feed beside bare pyarrow reading the same files, and their ratio.

    python -m benchmarks.feed                     # generates Ali-CCP's shape: 23 fields, 518 + 58 x 13.4 values a context
    python -m benchmarks.feed data=DATASET        # a dataset of jobs.preprocess
    python -m benchmarks.feed pooling=mean lanes=1
    python -m benchmarks.feed threads=1,2,4,8     # how speed by the clock grows with feed.threads

Both sides run in this process, interleaved, in CPU seconds of all threads (time.process_time); the median counts, of
the ratio too, which is that of a round. Then where the feed's time goes: medians of what each stage took in its own
thread. `threads=` is measured first, by the clock, in turns: impressions a second of the whole process.
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

from benchmarks.train_profile import FeedClock
from pipeline.dataset.manifest import MANIFEST, DatasetFile, Manifest, ManifestField, RowGroup, load_manifest, totals_of
from pipeline.locations import open_location
from pipeline.storage.parquet_files import PARQUET_OPTIONS
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.feed.settings import FeedSettings
from training.model.settings import EmbeddingSettings
from training.run.malloc import keep_freed_memory

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


def generate(
    path: Path, num_row_groups: int = 96, contexts_per_row_group: int = 280, seed: int = 1, daction: bool = False
) -> None:
    """Write a dataset: one file of `num_row_groups` row groups of about 16,000 impressions; with the label daction if asked."""
    random = np.random.default_rng(seed)
    (path / "train").mkdir(parents=True)
    staged = path / "train" / "staged"
    writer, counts = None, []
    for _ in range(num_row_groups):
        table, group = _row_group(random, contexts_per_row_group, daction)
        if writer is None:
            writer = pq.ParquetWriter(staged, table.schema, **PARQUET_OPTIONS)
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
    labels = {"click": "", "conversion": ""} | ({"daction": ""} if daction else {})
    manifest = Manifest({}, "", (), fields, labels, (file,), totals_of([file]), {})
    (path / MANIFEST).write_text(manifest.to_json())


def _row_group(random: np.random.Generator, num_contexts: int, daction: bool) -> tuple[pa.Table, RowGroup]:
    per_context = np.minimum(random.geometric(1 / 57.9, num_contexts), 300)
    offsets = np.concatenate([[0], np.cumsum(per_context)]).astype(np.int32)
    num_impressions = int(offsets[-1])
    click = (random.random(num_impressions) < 0.039).astype(np.int8)
    conversion = click * (random.random(num_impressions) < 0.0054).astype(np.int8)

    def lists(row_offsets: np.ndarray, values: np.ndarray) -> pa.Array:
        flat = pa.array(values)
        kind = pa.list_(pa.field("element", flat.type, nullable=False))
        return pa.ListArray.from_arrays(row_offsets, flat, type=kind)

    def per_row(values: np.ndarray) -> pa.Array:
        return lists(offsets, values)

    columns = {
        "context_id": pa.array([f"{number:016x}" for number in random.integers(0, 2**62, num_contexts)]),
        "group_id": pa.array(random.integers(0, 400_000, num_contexts)),
        "impression_id": per_row(random.integers(0, 42_000_000) + np.arange(num_impressions)),
        "click": per_row(click),
        "conversion": per_row(conversion),
    }
    if daction:
        acted = click * np.maximum(conversion, random.random(num_impressions) < 0.1).astype(np.int8)
        columns["daction"] = per_row(acted)
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
        columns[name] = lists(row_offsets, ids)
        if (scope, arity) == ("impression", "many"):
            columns[f"{name}__length"] = per_row(lengths.astype(np.int32))
        if weighted:
            columns[f"{name}__weight"] = lists(row_offsets, weights)
    dactions = int(acted.sum()) if daction else None
    group = RowGroup(num_contexts, num_impressions, int(click.sum()), int(conversion.sum()), dactions)
    schema = pa.schema([pa.field(name, column.type, nullable=name == "group_id") for name, column in columns.items()])
    return pa.table(columns, schema=schema), group


def read_with_pyarrow(dataset: str, manifest: Manifest, split: str) -> int:
    """Read every row group of `split` into an Arrow table, in one thread, and drop it."""
    filesystem, root = open_location(dataset)
    num_impressions = 0
    for file in manifest.files_of(split):
        with filesystem.open_input_file(f"{root}/{file.path}") as stream, pq.ParquetFile(stream) as parquet:
            for number in range(parquet.num_row_groups):
                parquet.read_row_group(number, use_threads=False)
        num_impressions += sum(group.impressions for group in file.row_groups)
    return num_impressions


def run_epoch(feed: Feed, epoch: int) -> int:
    """Iterate over the batches of one epoch, keeping none; return the number of impressions."""
    return sum(batch.num_impressions for batch in feed.batches(epoch))


def speeds_by_threads(numbers: str, runs: int, dataset: str, poolings: dict[str, str], plan: Plan) -> list[str]:
    """Time whole epochs by the clock with each number of threads in turn; return a line each."""
    manifest = load_manifest(dataset)
    feeds = {
        threads: Feed(
            dataset,
            manifest,
            "train",
            plan,
            rank=0,
            world_size=1,
            pooling=poolings,
            settings=FeedSettings(threads=threads),
        )
        for threads in map(int, numbers.split(","))
    }
    speeds: dict[int, list[float]] = {threads: [] for threads in feeds}
    for epoch in range(runs + 1):
        for threads, feed in feeds.items():
            start_s = time.monotonic()
            num_impressions = run_epoch(feed, epoch)
            if epoch:  # the first one compares checksums
                speeds[threads].append(num_impressions / (time.monotonic() - start_s) / 1e6)
    return [
        f"feed.threads={threads}: {statistics.median(found):.2f}M impressions/s, of the rounds {min(found):.2f} to {max(found):.2f}"
        for threads, found in speeds.items()
    ]


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    dataset = settings.get("data")
    keep_freed_memory()  # as jobs.train does; both sides gain from it
    with tempfile.TemporaryDirectory() as scratch:
        if dataset is None:
            dataset = f"{scratch}/dataset"
            generate(Path(dataset))
        manifest = load_manifest(dataset)
        lanes, pooling = int(settings.get("lanes", 8)), settings.get("pooling", EmbeddingSettings().pooling)
        batch_size = int(settings.get("batch_size", 5000))
        plan = Plan(manifest.files_of("train"), batch_size=batch_size, lanes=lanes, seed=1)
        poolings = {entry.name: pooling for entry in manifest.fields if entry.arity == "many"}
        feed = Feed(dataset, manifest, "train", plan, rank=0, world_size=1, pooling=poolings)
        for line in speeds_by_threads(
            settings.get("threads", "1,2,4"), int(settings.get("runs", 5)), dataset, poolings, plan
        ):
            print(line, flush=True)
        clock = FeedClock(feed._files)
        run_epoch(feed, 0)  # compiles, and verifies the checksums
        rounds: list[dict[str, float]] = []
        for epoch in range(int(settings.get("runs", 5))):
            start_s = time.process_time()
            num_impressions = read_with_pyarrow(dataset, manifest, "train")
            bare_s = time.process_time() - start_s
            clock.spent_s.clear()
            start_s = time.process_time()
            run_epoch(feed, epoch)
            feed_s = time.process_time() - start_s
            stages_s = clock.spent_s | {"feed: queues, threads": feed_s - sum(clock.spent_s.values())}
            rounds.append({"bare pyarrow": bare_s, "feed": feed_s} | stages_s)
    num_groups = sum(len(file.row_groups) for file in manifest.files_of("train"))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {num_impressions:,} impressions in {num_groups} row groups, {len(manifest.fields)} fields")
    for side in rounds[0]:
        each_ns = statistics.median(spent_s[side] for spent_s in rounds) / num_impressions * 1e9
        a_core_second = "" if side.startswith("feed:") else f", {1e3 / each_ns:.2f}M a core-second"
        print(f"{side:36s} {each_ns:6.1f} ns an impression{a_core_second}")
    ratios = [spent_s["bare pyarrow"] / spent_s["feed"] for spent_s in rounds]
    print(f"ratio {statistics.median(ratios):.2f}, of the rounds {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
