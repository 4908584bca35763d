"""Mutated raw lines against the slow twins of tests/: the byte kernel alone, then the whole of jobs.preprocess.

    python -m benchmarks.fuzz [lines=20000] [seed=1]

First `lines` lines (bit flips, cut lines, numbers too large, 17 digits, NaN, NUL bytes, invalid UTF-8, lines of a
megabyte: tests/support/mutations.py) are parsed in chunks cut anywhere, and each line's fields, ids, weights (bit for
bit), counts and reason are compared with tests/support/references/aliccp.py. Then two logs of a quarter as many lines
each are preprocessed, with the default checks and with those that reject all they may, and every row, vocabulary,
quarantined line and sum of the audit is compared with what the reference makes of the log. Stops at the first
difference; otherwise prints how many lines ended with each reason.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from jobs.entry import compose
from pipeline.aliccp.byte_ranges import input_splits
from pipeline.chunks.reasons import REASONS
from pipeline.chunks.sources import SKELETON, SourceFile
from pipeline.config.preprocess import PreprocessSettings
from pipeline.features.fields import catalogue
from pipeline.preprocess import preprocess
from pipeline.spark.session import stop_spark

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))  # where the slow twins are

from dataset_checks import assert_dataset_equals_reference
from kernel_checks import assert_splits_equal_reference
from mutations import mutated_log

_LINES_PER_LOG = 2000
_REJECT_ALL = ("feature_count_mismatch=quarantine", "conversion_without_click=quarantine", "duplicates=global")


def settings_of(raw: Path, out: Path, *overrides: str) -> PreprocessSettings:
    return compose("preprocess", PreprocessSettings, [f"source.path={raw}", f"out={out}", *overrides])


def fuzz_kernel(directory: Path, num_lines: int, seed: int) -> Counter[str]:
    """Parse `num_lines` mutated lines with the kernel; count them by reason of rejection."""
    fields = catalogue(settings_of(directory, directory).features, 1)
    draw = random.Random(seed)
    reasons: Counter[str] = Counter()
    number = 0
    while reasons.total() < num_lines:
        number += 1
        num_long = number % 2
        log = mutated_log(seed * 1_000_003 + number, _LINES_PER_LOG, share=0.95, num_long=num_long)
        log.write(directory)
        for table in log.lines:
            path = directory / f"{table}.csv"
            text = path.read_bytes()
            # Small splits of a line of a megabyte would each read it to its end.
            split_bytes = draw.choice((300_000, 10**7)) if num_long else draw.choice((100, 5000, 10**7))
            chunk_bytes = 2**16 if num_long else draw.choice((1, 100, 4096, 2**20))
            source = SourceFile(0, path.name, str(path), len(text), SKELETON, "train", False)
            splits = input_splits([source], split_bytes)
            reasons += assert_splits_equal_reference(splits, chunk_bytes, text, table.startswith(SKELETON), fields)
    return reasons


def fuzz_job(directory: Path, num_lines: int, seed: int, *checks: str) -> Counter[str]:
    """Preprocess a mutated log; count its lines by reason of rejection."""
    draw = random.Random(seed)
    num_parts, compressed = draw.choice(((0, False), (0, True), (3, False)))
    raw = mutated_log(seed, num_lines, share=0.3).write(directory / "raw", compressed, num_parts)
    overrides = [f"checks.{check}" for check in checks]
    overrides += [
        "vocabulary.min_count=1",
        "split.validation=0.3",
        "rows.max_impressions=8",
        "rows.impressions_per_file=1000",
    ]
    overrides += [f"source.split_bytes={draw.randrange(100_000, 400_000)}"]
    settings = settings_of(raw, directory / "out", *overrides)
    audit = preprocess(settings).audit
    assert_dataset_equals_reference(raw, directory / "out", settings)
    reasons = Counter(audit["quarantined"])
    for grains in audit["lines"].values():
        for lines in grains.values():
            reasons[""] += lines["written"]
            reasons["(without impressions)"] += lines.get("without_impressions", 0)
    return reasons


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    num_lines, seed = int(options.get("lines", 20_000)), int(options.get("seed", 1))
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="entirespace-fuzz-") as name:
        for column, work in {
            "kernel": lambda directory: fuzz_kernel(directory, num_lines, seed),
            "default checks": lambda directory: fuzz_job(directory, num_lines // 4, seed),
            "all rejected": lambda directory: fuzz_job(directory, num_lines // 4, seed + 1, *_REJECT_ALL),
        }.items():
            started = time.monotonic()
            directory = Path(name) / column.replace(" ", "-")
            directory.mkdir()
            found[column] = work(directory)
            print(f"{column}: {found[column].total():,} lines agree, {time.monotonic() - started:.0f} s", flush=True)
    stop_spark()
    print(f"\n{'lines by reason':<26}" + "".join(f"{column:>16}" for column in found))
    for reason in (*REASONS, "(without impressions)"):
        print(f"{reason or '(good)':<26}" + "".join(f"{counts[reason]:>16,}" for counts in found.values()))


if __name__ == "__main__":
    main()
