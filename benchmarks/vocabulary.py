"""The cost of large vocabularies to the driver and to each host: seconds, the driver's memory, bytes of the lookup tables.

    python -m benchmarks.vocabulary ids=48000000,23500000          # users, items: the product dataset of ESMM
    python -m benchmarks.vocabulary ids=48000000,23500000 sparse=1 # ids of 62 bits, which need a hash table

Random ids and counts stand for what the first pass hands to the driver: 16 bytes for each id that is kept.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.train import processor
from pipeline.dataset.lookup_table import lookup_of
from pipeline.features.fields import Field
from pipeline.features.vocabulary import vocabularies

Result = TypeVar("Result")


def drawn_pairs(numbers: list[int], sparse: bool) -> np.ndarray:
    """Return int64 [ids, 2] as a Counter does: distinct ids of each field in no order, and count · 2^16 + field."""
    draw = np.random.default_rng(1)
    pairs = np.empty((sum(numbers), 2), np.int64)
    at = 0
    for field, number in enumerate(numbers):
        # Multiplied by an odd number, ids stay distinct and lie anywhere in 62 bits; else they are dense.
        ids = np.arange(number) * 0x1234567DEADBEF % (1 << 62) if sparse else draw.permutation(number)
        pairs[at : at + number, 0] = ids
        pairs[at : at + number, 1] = (draw.geometric(0.05, number) << 16) + field
        at += number
    return pairs


def measure(what: str, num_ids: int, work: Callable[[], Result]) -> Result:
    """Run `work` and print a row of the table."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.process_time()
    result = work()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    print(f"| {what} | {time.process_time() - started:.1f} | {peak / 1e9:.1f} | {peak / num_ids:.0f} |", flush=True)
    return result


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    numbers = [int(number) for number in given.get("ids", "48000000,23500000").split(",")]
    sparse, num_ids = bool(int(given.get("sparse", "0"))), sum(numbers)
    fields = [Field(f"field_{i}", str(i), "context", "one", False, 1) for i in range(len(numbers))]
    print(f"{processor()} · {num_ids:,} ids, {'sparse' if sparse else 'dense'}")
    print("| on the driver | CPU s | peak memory, GB | bytes an id |\n|---|---|---|---|")
    pairs = drawn_pairs(numbers, sparse)
    found = measure("vocabularies: ranked", num_ids, partial(vocabularies, pairs, fields))
    del pairs  # as the driver's goes, once it is ranked
    lookup = measure("lookup tables", num_ids, lambda: lookup_of(found))
    with tempfile.TemporaryDirectory() as folder:
        paths = measure("written for the workers", num_ids, lambda: lookup.save(Path(folder)))
        num_bytes = sum(path.stat().st_size for path in paths)
    print(f"\nlookup tables, mapped once a host: {num_bytes / 1e9:.2f} GB, {num_bytes / num_ids:.1f} bytes an id")


if __name__ == "__main__":
    main()
