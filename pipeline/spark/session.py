"""The Spark session, and how its stages are run: quiet, on loopback where local, with progress of our own."""

import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tqdm import tqdm

import pipeline
from pipeline.config.preprocess import SparkSettings
from pipeline.dataset.manifest import InputError
from pipeline.kernels.cache import own_directory
from pipeline.spark.java import ensure_java
from pipeline.spark.workers import MALLOC

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

_EVERYWHERE = {
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(8 << 20),
    "spark.sql.adaptive.enabled": "false",  # our partitions are counted beforehand; merging them would merge files
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",  # the columns of a log are named as they are; find_log looks at them so, too
    "spark.python.unix.domain.socket.enabled": "true",  # cheaper than TCP between the JVM and Python
    "spark.buffer.size": str(1 << 20),
    "spark.driver.maxResultSize": "0",  # vocabularies come to the driver: 16 bytes for each id that is kept
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_LOCAL = {
    "spark.driver.memory": "2g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.shuffle.compress": "false",  # one machine: the shuffle stays in the page cache
}
# The JVM only moves blobs here: compiling it harder, and collecting in parallel, cost 12 CPU s of a small job's 27.
_LOCAL_JAVA = " -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
_ATTEMPTS = 4
#: Where remote files are, and by whose account, as far as that is no secret: executors need to know it too.
_REMOTE_FILES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
_SENTENCE = re.compile(rf"{re.escape(InputError.__module__)}\.{InputError.__qualname__}: (.+)")
# The exception may be wrapped in one of py4j's.
_UNREADABLE = re.compile(
    r"\[FAILED_READ_FILE[^\]]*\] Encountered error while reading file (?:file:/+(?=/))?(.+?)\.\s(.*?)\s*SQLSTATE"
)
#: What Spark says at length where a limit of its own was met → the sentence for it.
_LIMITS = {
    "java.lang.OutOfMemoryError": "The Java side of Spark ran out of memory; the driver holds 16 bytes for each id that "
    "enters a vocabulary: raise spark.driver.memory ('+spark.conf={spark.driver.memory: 8g}'), or vocabulary.min_count.",
    "No space left on device": "Spark's scratch space is full; point SPARK_LOCAL_DIRS at a larger disk (the shuffle is "
    "about as large as the dataset), or read from smaller files.",
    "is bigger than spark.driver.maxResultSize": "The vocabularies are larger than spark.driver.maxResultSize, which "
    "spark.conf or spark-submit has set; leave it out, or raise it.",
}


def is_local(master: str) -> bool:
    """Whether Spark's workers are threads of this process's JVM."""
    return master.startswith("local") and not master.startswith("local-cluster")


def with_retries(master: str) -> str:
    """Let a local master try a task four times, as clusters do: local[2] would end a job with its first lost worker."""
    return re.sub(r"\Alocal\[(\d+|\*)\]\Z", rf"local[\1,{_ATTEMPTS}]", master)


def start_spark(settings: SparkSettings) -> "SparkSession":
    """A session with our defaults, below them what `spark.conf` says; InputError where Java or the master is missing."""
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit has started the JVM, and decides on the master
    if not submitted:
        ensure_java(os.environ)
    own_directory(os.environ)
    root = str(Path(pipeline.__file__).parent.parent)
    # From a zip (--py-files) Spark brings the code to the executors itself; a checkout they must see where we do.
    for_executors = ["NUMBA_CACHE_DIR", *_REMOTE_FILES] + ["PYTHONPATH"] * Path(root).is_dir()
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *paths])
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("entirespace preprocess")
    chosen = dict(_EVERYWHERE)
    if not submitted:
        builder = builder.master(with_retries(settings.master))
        java_options = f"-Dlog4j2.configurationFile={root}/conf/spark/log4j2.properties"
        if is_local(settings.master):
            chosen |= _LOCAL
            java_options += _LOCAL_JAVA
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        chosen["spark.driver.extraJavaOptions"] = java_options
    for name in for_executors:
        if name in os.environ:
            chosen[f"spark.executorEnv.{name}"] = os.environ[name]
    chosen |= {f"spark.executorEnv.{name}": value for name, value in MALLOC.items()}
    for key, value in (chosen | _flat(settings.conf)).items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")  # spark-submit brings its own log settings
        return session
    except (PySparkException, RuntimeError) as error:
        raise InputError(f"Spark does not start with spark.master={settings.master}: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("py4j"):
            raise InputError(
                f"Spark does not start with spark.master={settings.master}: {_first_line(error)}"
            ) from error
        raise


def stop_spark() -> None:
    """End the session, if one was started: executors that lose their driver at its exit would say so at length."""
    if pyspark := sys.modules.get("pyspark.sql"):
        session = pyspark.SparkSession.getActiveSession()
        if session is not None:
            session.stop()


def numbers(spark: "SparkSession", count: int) -> "DataFrame":
    """The numbers [0, count), one in each partition: a task finds its work by its number. One column, id."""
    return spark.range(0, count, 1, count)


def collect(frame: "DataFrame", what: str, num_tasks: int, unit: str) -> "pa.Table":
    """Run `frame` and fetch its few rows, with progress over `num_tasks` tasks; InputError where a task raised one."""
    spark = frame.sparkSession
    with _progress(spark, what, num_tasks, unit), sentences():
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
def sentences() -> Iterator[None]:
    """Turn an InputError of a task, which arrives as text in Spark's exception, into itself, and what Spark says of a file
    that it cannot read, or of a limit of its own, into a sentence.
    """
    try:
        yield
    except Exception as error:
        if found := _SENTENCE.search(str(error)):
            raise InputError(found.group(1).strip()) from None
        if found := _UNREADABLE.search(str(error)):
            raise InputError(
                f"{unquote(found.group(1))} cannot be read to its end "
                f"({found.group(2) or 'it is damaged, or not of the format that it should have'}); "
                "repair or replace the file, then run again."
            ) from error
        for sign, sentence in _LIMITS.items():
            if sign in str(error):
                raise InputError(sentence) from error
        raise


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


def _flat(conf: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`spark.conf.spark.driver.memory=4g` arrives nested; Spark's keys are dotted."""
    flat: dict[str, str] = {}
    for key, value in conf.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "java_exception", None) or error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
