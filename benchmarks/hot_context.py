"""The cost of one context with very many impressions: a log, and the same log that ends in such a context.

    python -m benchmarks.hot_context [impressions=300000] [hot=300000,1000000]

Each goes through preprocessing in a process of its own, so that the peaks of memory stand apart.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.preprocess import print_cost, raw_mb, run_ours, simulated_log

_KEY = b"ffffffffffffffff"
_FIRST_ID = 1 << 40  # of the hot context's impressions


def add_hot_context(raw: Path, hot: int) -> None:
    """Append one context with `hot` impressions to the train files; their features are those of the log's impressions."""
    contexts, skeleton = (raw / f"{table}_train.csv" for table in ("common_features", "sample_skeleton"))
    with contexts.open("rb") as stream:
        line = stream.readline()
    with contexts.open("ab") as stream:
        stream.write(_KEY + line[line.index(b",") :])
    with skeleton.open("rb") as stream:
        lines = [line.split(b",", 4) for line, _ in zip(stream, range(10_000), strict=False)]
    lines = [columns for columns in lines if len(columns) == 5]
    with skeleton.open("ab") as stream:
        for number in range(hot):
            _, click, buy, _, features = lines[number % len(lines)]
            stream.write(b"%d,%b,%b,%b,%b" % (_FIRST_ID + number, click, buy, _KEY, features))


def main() -> None:
    """Measure each log in a process of its own."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if raw := options.get("_raw"):
        with tempfile.TemporaryDirectory(prefix="entirespace-hot-") as folder:
            print_cost(Path(raw).name, raw_mb(Path(raw)), run_ours(Path(raw), Path(folder) / "dataset", [])[1])
        return
    with tempfile.TemporaryDirectory(prefix="entirespace-hot-") as folder:
        base = simulated_log(int(options.get("impressions", 300_000)), Path(folder), dirt=True)
        for hot in [0, *(int(number) for number in options.get("hot", "300000,1000000").split(","))]:
            raw = Path(folder) / f"hot-{hot}"
            shutil.copytree(base, raw)
            if hot:
                add_hot_context(raw, hot)
            subprocess.run([sys.executable, "-m", "benchmarks.hot_context", f"_raw={raw}"], check=True)
            shutil.rmtree(raw)


if __name__ == "__main__":
    main()
