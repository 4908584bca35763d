"""Run the stages of a job in Spark, with progress, and share files with its workers."""

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.errors import writing
from pipeline.spark.exceptions import plain_errors
from pipeline.spark.scratch import scratch_folder
from pipeline.spark.session import is_local

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

#: Rows as a task takes and yields them (DataFrame.mapInArrow).
Batches = Iterator["pa.RecordBatch"]


def number_partitions(spark: "SparkSession", count: int) -> "DataFrame":
    """Return the numbers [0, count) as the column `id`, one in each partition: a task finds its work by its number."""
    return spark.range(0, count, 1, count)


def collect(frame: "DataFrame", title: str, num_tasks: int, unit: str) -> "pa.Table":
    """Run `frame` and fetch its few rows, with progress over `num_tasks` tasks; InputError if a task raised one."""
    spark = frame.sparkSession
    with _show_progress(spark, title, num_tasks, unit), plain_errors():
        return frame.toArrow()


@contextmanager
def share_files(spark: "SparkSession", save: Callable[[Path], list[Path]]) -> Iterator[Callable[[], Path]]:
    """Give every worker the files that `save` writes: by their path on one machine, else shipped by Spark.

    The value is a function that tasks call for the folder of the files; they map them into memory.
    """
    with temporary_folder() as folder:
        with writing(f"TMPDIR={folder.parent}", instead="set TMPDIR to a larger one"):
            paths = save(folder)
        if is_local(spark.sparkContext.master):
            yield _LocalFolder(str(folder))
        else:
            for path in paths:
                spark.sparkContext.addFile(str(path))
            yield _shipped_folder


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a scratch folder for the length of the block."""
    root = scratch_folder()
    with writing("TMPDIR", instead="set it to a folder with room"):
        folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _LocalFolder:
    path: str

    def __call__(self) -> Path:
        return Path(self.path)


def _shipped_folder() -> Path:
    from pyspark import SparkFiles

    return Path(SparkFiles.getRootDirectory())


@contextmanager
def _show_progress(spark: "SparkSession", title: str, num_tasks: int, unit: str) -> Iterator[None]:
    """Show how many tasks of the block's stages are done: a bar on a terminal, and a line at the end."""
    context: Any = spark.sparkContext
    group = f"entirespace-{title}-{time.monotonic_ns()}"
    context.setJobGroup(group, title)
    stop = threading.Event()
    done = _count_done_tasks(context, group)
    bar = tqdm(total=num_tasks, desc=title, unit=unit, disable=not sys.stderr.isatty(), leave=False)

    def watch() -> None:
        with suppress(Exception):  # the JVM may have ended: the stage says so
            while not stop.wait(0.3):
                bar.update(min(done(), num_tasks) - bar.n)

    watcher = threading.Thread(target=watch, daemon=True) if not bar.disable else None
    started = time.monotonic()
    if watcher:
        watcher.start()
    try:
        yield
        print(f"{title}: {num_tasks} {unit}, {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    finally:
        stop.set()
        if watcher:
            watcher.join()
        bar.close()


def _count_done_tasks(context: Any, group: str) -> Callable[[], int]:
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
