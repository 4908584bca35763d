"""What a sampled epoch costs the feed, beside one of all impressions and one of the clicks.

    python -m benchmarks.sampling DATASET

Reads, checks, draws and collates the train split; no model. CPU seconds of the process, the least of the repetitions.
"""

import argparse
import time

from pipeline.dataset.manifest import Manifest, load_manifest
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.feed.sampling import Sampler, expected_by_counts
from training.feed.settings import FeedSettings, SamplingSettings

BATCH_SIZE, LANES = 5000, 8
CASES: list[tuple[str, str, SamplingSettings | None]] = [
    ("impressions", "impressions", None),
    ("clicks (BASE)", "clicks", None),
    ("samples: each impression once", "samples", SamplingSettings()),
    ("samples: AMAN, 10 %", "samples", SamplingSettings(unclicked=0.1)),
    ("samples: OVERSAMPLING, 5 times", "samples", SamplingSettings(unclicked=0.0, converted=5.0)),
]


def feed_of(data: str, manifest: Manifest, unit: str, sampling: SamplingSettings | None) -> Feed:
    """Open the feed of one case."""
    files = manifest.files_of("train")
    expected, sampler = None, None
    if sampling is not None:
        groups = [group for file in files for group in file.row_groups]
        expected = [expected_by_counts(sampling, one.impressions, one.clicks, one.conversions) for one in groups]
        sampler = Sampler(sampling, 1)
    plan = Plan(files, batch_size=BATCH_SIZE, lanes=LANES, seed=1, unit=unit, expected=expected)
    pooling = {entry.name: "sum" for entry in manifest.fields}
    settings = FeedSettings(verify="size")
    return Feed(
        data, manifest, "train", plan, rank=0, world_size=1, pooling=pooling, settings=settings, sampler=sampler
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    manifest = load_manifest(options.data)
    feeds = [(name, feed_of(options.data, manifest, unit, sampling)) for name, unit, sampling in CASES]
    for _, feed in feeds:  # compile, and fill the page cache
        for _ in feed.batches(0):
            pass
    least: dict[str, float] = {}
    num_samples: dict[str, int] = {}
    for epoch in range(1, 1 + options.repeats):  # in turn, so that a busy moment of the machine meets all
        for name, feed in feeds:
            start_s = time.process_time()
            num_samples[name] = sum(batch.num_impressions for batch in feed.batches(epoch))
            least[name] = min(least.get(name, float("inf")), time.process_time() - start_s)
    whole = least[CASES[0][0]]
    print(f"{'an epoch of':<32}{'samples':>12}{'CPU ms':>9}{'times':>7}")
    for name, seconds in least.items():
        print(f"{name:<32}{num_samples[name]:>12,}{seconds * 1e3:>9.1f}{seconds / whole:>7.2f}")


if __name__ == "__main__":
    main()
