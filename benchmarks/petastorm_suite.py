"""Petastorm 0.13.1's own test-suite with today's packages, and the row groups that its stock thread pool loses.

    python benchmarks/petastorm_suite.py suite                # the suite with OrderedPool in place of ThreadPool; a table
    python benchmarks/petastorm_suite.py suite pool=stock     # the same with petastorm's own pool
    python benchmarks/petastorm_suite.py suite only=test_reader.py
    python benchmarks/petastorm_suite.py losses               # runs that lose row groups or disorder them, both pools

`suite` needs, beside requirements.txt and requirements-dev.txt, the packages that the suite's images are made with:
`pip install opencv-python-headless pillow`. Tests that call TensorFlow, torchvision, s3fs or gcsfs are skipped where
those are missing (petastorm_legacy.py). `python=PATH` runs it in another interpreter. Everything is written below a
temporary directory. This file is also the plugin of that pytest run.
"""

import collections
import contextlib
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
SUITES = ("tests", "workers_pool/tests", "hdfs/tests")
OUTCOMES = ("passed", "failed", "error", "skipped")
#: Where the plugin writes a line for each outcome, and which pool it puts into petastorm.
REPORT, POOL = "PETASTORM_SUITE_REPORT", "PETASTORM_SUITE_POOL"
TEST_TIMEOUT_S = 300
SUITE_TIMEOUT_S = 3600


def run_suite(python: str = sys.executable, pool: str = "ordered", only: str = "") -> list[dict[str, Any]]:
    """Run the suite in a pytest of its own; return one record a test: module, test, outcome, seconds, reason."""
    from pipeline.spark.java import ensure_java

    suite = _suite_of(python)
    with tempfile.TemporaryDirectory(prefix="petastorm-suite-") as scratch:
        # Spark's workers and the process pool's start interpreters of their own, which need the old names as well.
        (Path(scratch) / "sitecustomize.py").write_text("import petastorm_legacy\n\npetastorm_legacy.install()\n")
        (Path(scratch) / "pytest.ini").write_text("[pytest]\n")
        report = Path(scratch) / "report.jsonl"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([scratch, str(HERE), str(HERE.parent)]),
            "PYSPARK_PYTHON": python,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "TMPDIR": scratch,
            REPORT: str(report),
            POOL: pool,
        }
        ensure_java(environment)
        command = [python, "-m", "pytest", "-c", f"{scratch}/pytest.ini", "-q", "-W", "ignore", "--tb=short"]
        command += ["--rootdir", str(suite.parent)]
        command += ["-p", "petastorm_suite", "-p", "no:cacheprovider", "--basetemp", f"{scratch}/basetemp"]
        command += [f"--timeout={TEST_TIMEOUT_S}", "--timeout-method=signal", "--continue-on-collection-errors"]
        command += [str(path) for folder in SUITES for path in sorted((suite / folder).glob(only or "test_*.py"))]
        with _own_group(command, cwd=scratch, env=environment) as process:
            process.wait(SUITE_TIMEOUT_S)
        return [json.loads(line) for line in report.read_text().splitlines()]


def _suite_of(python: str) -> Path:
    """Find petastorm's folder in `python`, which cannot import it here; exit if a package is missing."""
    program = (
        "import importlib.util as u; print([m for m in ('petastorm','cv2','PIL','pytz','pytest_timeout') "
        "if not u.find_spec(m)] or u.find_spec('petastorm').submodule_search_locations[0])"
    )
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    if found.startswith("["):
        sys.exit(
            f"The suite needs {found} in {python}: pip install -r requirements-dev.txt opencv-python-headless pillow"
        )
    return Path(found)


@contextlib.contextmanager
def _own_group(command: list[str], **options: Any) -> Iterator[subprocess.Popen]:
    """Start `command`; leave nothing of it running afterwards, neither Spark's JVM nor a process pool's workers."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(records: Iterable[dict[str, Any]]) -> str:
    """Make a Markdown table of outcomes by module, then list the reasons of what did not pass, most frequent first."""
    by_module: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    reasons: dict[str, dict[str, set[str]]] = {outcome: collections.defaultdict(set) for outcome in OUTCOMES[1:]}
    for record in records:
        by_module[record["module"]][record["outcome"]] += 1
        if record["outcome"] != "passed":
            reasons[record["outcome"]][record["reason"]].add(f"{record['module']}::{record['test']}")
    lines = ["| module | " + " | ".join(OUTCOMES) + " |", "|---" + "|---:" * len(OUTCOMES) + "|"]
    for module, counts in sorted(by_module.items()):
        lines.append(f"| {module} | " + " | ".join(str(counts[outcome] or "–") for outcome in OUTCOMES) + " |")
    total = sum(by_module.values(), collections.Counter())
    lines.append("| **all** | " + " | ".join(f"**{total[outcome]}**" for outcome in OUTCOMES) + " |")
    for outcome, grouped in reasons.items():
        for reason, tests in sorted(grouped.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(sorted(tests)[:3]) + (", …" if len(tests) > 3 else "")
            lines.append(f"\n{outcome} {len(tests)}: {reason}\n    {shown}")
    return "\n".join(lines)


def pools() -> dict[str, type]:
    """Return petastorm's own pool and ours, under the same signature."""
    from training.feed.petastorm_reader import OrderedPool

    from petastorm.workers_pool.thread_pool import ThreadPool  # isort: skip  (importable after the port alone)

    class SuitePool(OrderedPool):
        """OrderedPool under ThreadPool's signature; `seed` and `shuffle_rows` only let ThreadPool disorder results."""

        def __init__(self, workers_count: int, results_queue_size: int = 50, **_ignored: Any) -> None:
            super().__init__(workers_count, results_queue_size)

    return {"stock": ThreadPool, "ordered": SuitePool}


def losses(runs: str = "60") -> str:
    """Read a file of 40 row groups with make_batch_reader `runs` times for each pool and number of workers.

    Both pools run in this process, alternating: how many runs lost row groups, and how many gave them out of order.
    """
    import petastorm_legacy

    petastorm_legacy.install()
    sides = pools()
    from petastorm import make_batch_reader, reader

    lines = [
        "| workers | pool | runs | lost row groups | out of order | most lost of 40 |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        pq.write_table(pa.table({"row_group": np.arange(40)}), f"{scratch}/data.parquet", row_group_size=1)
        for workers in (1, 2):
            lost: dict[str, list[int]] = {pool: [] for pool in sides}
            disordered = dict.fromkeys(sides, 0)
            for _ in range(int(runs)):
                for pool, reader.ThreadPool in sides.items():
                    batches = make_batch_reader(f"file://{scratch}", workers_count=workers, shuffle_row_groups=False)
                    with contextlib.redirect_stdout(io.StringIO()), batches:  # it prints as it closes
                        read = [int(batch.row_group[0]) for batch in batches]
                    lost[pool].append(40 - len(read))
                    disordered[pool] += read != sorted(read)
            lines += [
                f"| {workers} | {pool} | {runs} | {sum(map(bool, lost[pool]))} | {disordered[pool]} | {max(lost[pool])} |"
                for pool in sides
            ]
    return "\n".join([*lines, "", *(f"{pool}: {_join_after_a_failure(side)}" for pool, side in sides.items())])


def _join_after_a_failure(pool_class: type) -> str:
    """Print what join does when a worker has failed while its queue of results was full."""
    from petastorm.workers_pool.worker_base import WorkerBase

    class FloodsThenFails(WorkerBase):
        def process(self) -> None:
            for number in range(5):
                self.publish_func(number)
            raise ValueError("the failure that the consumer never asked for")

    pool = pool_class(1, 5)
    with contextlib.redirect_stderr(io.StringIO()):  # petastorm prints the traceback there
        pool.start(FloodsThenFails)
        pool.ventilate()
        time.sleep(0.5)
        pool.stop()
        joining = threading.Thread(target=pool.join, daemon=True)
        joining.start()
        joining.join(5)
    return "join hangs after a failure with a full queue" if joining.is_alive() else "join returns after such a failure"


# The plugin: hooks that pytest calls in the suite's own process.


class _LoggerHooks:
    def pytest_logger_config(self, logger_config: Any) -> None:
        """pytest-logger's hook, which petastorm's conftest implements and nothing here calls."""


def pytest_addhooks(pluginmanager: Any) -> None:
    pluginmanager.add_hookspecs(_LoggerHooks)


def pytest_configure() -> None:
    """Put the pool to test where petastorm and its tests find ThreadPool; before any test module is imported."""
    import pandas.testing
    from petastorm import reader
    from petastorm.workers_pool import thread_pool

    sys.modules["pandas.util.testing"] = pandas.testing  # its place until pandas 2
    reader.ThreadPool = thread_pool.ThreadPool = pools()[os.environ[POOL]]


def pytest_collectreport(report: Any) -> None:
    if report.outcome != "passed":
        _record(report, "", "error" if report.failed else "skipped")


def pytest_runtest_logreport(report: Any) -> None:
    # A test is one record: its call, unless its setup or teardown says otherwise.
    if report.when == "call" or report.outcome == "skipped":
        _record(report, report.nodeid.split("::", 1)[1], report.outcome)
    elif report.outcome == "failed":
        _record(report, f"{report.nodeid.split('::', 1)[1]} ({report.when})", "error")


def _record(report: Any, test: str, outcome: str) -> None:
    module = report.nodeid.split("::")[0].split("petastorm/", 1)[-1]
    record = {"module": module, "test": test, "outcome": outcome, "seconds": getattr(report, "duration", 0.0)}
    with open(os.environ[REPORT], "a") as lines:
        lines.write(json.dumps(record | {"reason": _reason(report.longrepr)}) + "\n")


def _reason(longrepr: Any) -> str:
    """Write the exception in one line, without the numbers and addresses that would keep equal reasons apart."""
    if longrepr is None:
        return ""
    if isinstance(longrepr, tuple):
        text = longrepr[2]
    else:
        crash = getattr(longrepr, "reprcrash", None)
        text = crash.message if crash else str(longrepr).strip().splitlines()[-1]
    first = text.strip().splitlines()[0] if text.strip() else ""
    return re.sub(r"0x[0-9a-f]+|/\S*/", "…", first)[:200]


def main() -> None:
    command, *options = sys.argv[1:] or [""]
    settings = dict(option.split("=", 1) for option in options)
    start_s = time.monotonic()
    if command == "suite":
        print(table(run_suite(**settings)))
    elif command == "losses":
        print(losses(**settings))
    else:
        sys.exit(__doc__)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {time.monotonic() - start_s:.0f} s")


if __name__ == "__main__":
    main()
