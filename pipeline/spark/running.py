"""Run the stages of a job in Spark, with progress, and share files with its workers."""

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.spark.exceptions import plain_errors
from pipeline.spark.session import is_local

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

#: Rows as a task takes and yields them (DataFrame.mapInArrow).
Batches = Iterator["pa.RecordBatch"]


def numbers(spark: "SparkSession", count: int) -> "DataFrame":
    """The numbers [0, count), one in each partition: a task finds its work by its number. One column, id."""
    return spark.range(0, count, 1, count)


def collect(frame: "DataFrame", what: str, num_tasks: int, unit: str) -> "pa.Table":
    """Run `frame` and fetch its few rows, with progress over `num_tasks` tasks; InputError where a task raised one."""
    spark = frame.sparkSession
    with _progress(spark, what, num_tasks, unit), plain_errors():
        return frame.toArrow()


@contextmanager
def shared(spark: "SparkSession", save: Callable[[Path], list[Path]]) -> Iterator[Callable[[], Path]]:
    """The files that `save` writes, where every worker can map them into memory: by path, or shipped by Spark."""
    with tempfile.TemporaryDirectory(prefix="entirespace-") as temporary:
        paths = save(Path(temporary))
        if is_local(spark.sparkContext.master):
            yield _AtPath(temporary)
        else:
            for path in paths:
                spark.sparkContext.addFile(str(path))
            yield _shipped


@dataclass(frozen=True)
class _AtPath:
    path: str

    def __call__(self) -> Path:
        return Path(self.path)


def _shipped() -> Path:
    from pyspark import SparkFiles

    return Path(SparkFiles.getRootDirectory())


@contextmanager
def _progress(spark: "SparkSession", what: str, num_tasks: int, unit: str) -> Iterator[None]:
    """A bar on a terminal, else a line at the end: the tasks that are done in the stages of this job group."""
    context: Any = spark.sparkContext
    group = f"entirespace-{what}-{time.monotonic_ns()}"
    context.setJobGroup(group, what)
    stop = threading.Event()
    done = _done_tasks(context, group)
    bar = tqdm(total=num_tasks, desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False)

    def watch() -> None:
        while not stop.wait(0.3):
            bar.update(min(done(), num_tasks) - bar.n)

    watcher = threading.Thread(target=watch, daemon=True) if not bar.disable else None
    started = time.monotonic()
    if watcher:
        watcher.start()
    try:
        yield
        print(f"{what}: {num_tasks} {unit}, {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    finally:
        stop.set()
        if watcher:
            watcher.join()
        bar.close()


def _done_tasks(context: Any, group: str) -> Callable[[], int]:
    tracker = context.statusTracker()

    def done() -> int:
        total = 0
        for job in tracker.getJobIdsForGroup(group):
            info = tracker.getJobInfo(job)
            for stage in info.stageIds if info else ():
                stage_info = tracker.getStageInfo(stage)
                total += stage_info.numCompletedTasks if stage_info else 0
        return total

    return done
