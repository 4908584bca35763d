"""Run the stages of a job in Spark, with progress, and share files with its workers."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import writing
from pipeline.scratch import scratch_folder
from pipeline.spark.exceptions import plain_errors
from pipeline.spark.session import is_local
from pipeline.terminal import size_text, stage

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

#: Rows as a task takes and yields them (DataFrame.mapInArrow).
Batches = Iterator["pa.RecordBatch"]


def number_partitions(spark: "SparkSession", count: int) -> "DataFrame":
    """Return the numbers [0, count) as the column `id`, one in each partition: a task finds its work by its number."""
    return spark.range(0, count, 1, count)


def collect(frame: "DataFrame", title: str, num_tasks: int, unit: str, num_bytes: int = 0) -> "pa.Table":
    """Run `frame` and fetch its few rows, with progress over `num_tasks` tasks; InputError if a task raised one.

    With `num_bytes`, the size of what the tasks read, the progress is shown in bytes, in equal parts for the tasks.
    """
    spark = frame.sparkSession
    with _show_progress(spark, title, num_tasks, unit, num_bytes), plain_errors():
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
def _show_progress(spark: "SparkSession", title: str, num_tasks: int, unit: str, num_bytes: int) -> Iterator[None]:
    """Show how many tasks of the block's stages are done: a bar on a terminal, and a line at the end."""
    context: Any = spark.sparkContext
    group = f"entirespace-{title}-{time.monotonic_ns()}"
    context.setJobGroup(group, title)
    done = _count_done_tasks(context, group)
    total, of_a_task = (num_bytes, num_bytes / num_tasks) if num_bytes and num_tasks else (num_tasks, 1)
    summary = f"{size_text(num_bytes)}, {num_tasks} {unit}" if num_bytes else f"{num_tasks} {unit}"
    with stage(title, total, "B" if num_bytes else unit, summary, lambda: done() * of_a_task):
        yield


def _count_done_tasks(context: Any, group: str) -> Callable[[], int]:
    tracker = context.statusTracker()

    def done() -> int:
        total = 0
        for job in tracker.getJobIdsForGroup(group):
            info = tracker.getJobInfo(job)
            for number in info.stageIds if info else ():
                stage_info = tracker.getStageInfo(number)
                total += stage_info.numCompletedTasks if stage_info else 0
        return total

    return done
