"""What Spark says at length reaches the user as one sentence."""

import pytest

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.spark.exceptions import first_line, plain_errors
from pipeline.spark.session import name_files_in_utf8, with_retries

# The first lines of what PySpark 4.3 raised here with spark.driver.maxResultSize=10k, and with a heap that was too small.
_TOO_LARGE = """[UNKNOWN] Job aborted due to stage failure: Total size of serialized results of 1 tasks (324.8 KiB) is bigger than spark.driver.maxResultSize (10.0 KiB)
\tat org.apache.spark.scheduler.DAGScheduler.abortStage(DAGScheduler.scala:2935)"""
_NO_HEAP = "An error occurred while calling o71.collectAsArrowToPython.\n: java.lang.OutOfMemoryError: Java heap space"
_DAMAGED = (
    "Job aborted: Lost task 0.0 in stage 1.0: org.apache.spark.SparkException: [FAILED_READ_FILE.NO_HINT] Encountered error "
    "while reading file hdfs://name/log/part-0.csv.gz.  SQLSTATE: KD001\n\tat org.apache.spark …"
)
_LOCAL = (
    "An error occurred while calling o92.collectToPython.\n: org.apache.spark.SparkException: [FAILED_READ_FILE.NO_HINT] "
    "Encountered error while reading file file:///raw%20log/1.parquet. is not a Parquet file. SQLSTATE: KD001"
)
_NO_ROOM = "java.io.IOException: No space left on device\n\tat java.base/sun.nio.ch …"
_NO_ROOM_FOR_A_BLOCK = (
    "Job aborted due to stage failure: java.io.FileNotFoundException: /scratch/blockmgr-1/0c/temp_shuffle_1 (No space left "
    "on device)\n\tat java.base/java.io …"
)
_WORKER = (
    "An exception was thrown from the Python worker.\nTraceback (most recent call last):\n  File x, line 1, in y\n"
)
_OF_A_TASK = "Traceback …\n  File x\npipeline.errors.InputError: a.csv, byte 7: bad_label\n\n\tat org.apache.spark …"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (_DAMAGED, "hdfs://name/log/part-0.csv.gz cannot be read to its end (it is damaged, or not of the format"),
        (_LOCAL, "/raw log/1.parquet cannot be read to its end (is not a Parquet file.); repair or replace the file"),
        (_NO_ROOM, "point SPARK_LOCAL_DIRS at a larger disk"),
        (_TOO_LARGE, "leave it out, or raise it"),
        (_NO_HEAP, "raise spark.driver.memory"),
        (_OF_A_TASK, "a.csv, byte 7"),
        (
            _NO_ROOM_FOR_A_BLOCK,
            "Spark's scratch space is full (/scratch/blockmgr-1/0c/temp_shuffle_1); point SPARK_LOCAL_DIRS",
        ),
        (f"{_DAMAGED}\n{_NO_ROOM}", "Spark's scratch space is full"),
        (
            _WORKER + "OSError: [Errno 28] No space left on device: '/scratch/x'\n\n\tat org…",
            "/scratch/x, which a task of Spark uses, cannot be written (No space left on device); make room there",
        ),
        (
            _WORKER + "OSError: [Errno 30] Read-only file system\n",
            "The disk of a task of Spark cannot be written (Read-only",
        ),
        (
            _WORKER + "OSError: [Errno 24] Too many open files: '/log/a.csv'\n",
            "the limit of open files; raise it (ulimit -n",
        ),
        (_WORKER + "MemoryError\n", "A Python worker of Spark ran out of memory; lower source.split_bytes"),
        (_WORKER + "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9 TiB\n", "ran out of memory; lower"),
        (
            _WORKER + "ModuleNotFoundError: No module named 'numba'\n",
            "lacks a module (No module named 'numba'); give every",
        ),
        (
            'java.io.IOException: Cannot run program "/nope/python": error=2, No such file',
            "cannot run /nope/python; set PYSPARK",
        ),
        (
            "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n\tat …",
            "were killed each time",
        ),
        ("java.lang.OutOfMemoryError: unable to create native thread: possibly out of memory", "ulimit -u"),
    ],
)
def test_a_limit_of_spark_and_an_input_error_of_a_task_become_one_sentence(said: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught, plain_errors():
        raise RuntimeError(said)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


class Py4JNetworkError(Exception):
    """As py4j raises it where the JVM is gone."""


def test_a_jvm_that_has_ended_is_one_sentence_and_an_input_error_passes_through() -> None:
    with (
        pytest.raises(InputError, match=r"Spark's Java process has ended; out is as it was\. .* then run again\."),
        plain_errors(),
    ):
        raise Py4JNetworkError("Answer from Java side is empty")
    said = InputError("the first sentence (java.lang.OutOfMemoryError)")
    with pytest.raises(InputError) as caught, plain_errors():
        raise said
    assert caught.value is said
    with pytest.raises(ConnectionError), plain_errors():
        raise ConnectionRefusedError("of something else than Java, which runs")


def test_the_line_that_a_user_sees_of_a_java_exception_has_no_class() -> None:
    assert first_line(RuntimeError("java.lang.IllegalArgumentException: System memory …\n\tat x")) == "System memory …"
    assert first_line(RuntimeError("[CANNOT_PARSE] a: b")) == "[CANNOT_PARSE] a: b"


def test_any_other_failure_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="something else"), plain_errors():
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("group", "master"),
    [("standalone", "spark://host:7077"), ("yarn", "yarn"), ("kubernetes", "k8s://https://host:6443")],
)
def test_the_configuration_of_each_cluster_asks_for_second_attempts_and_for_its_master(group: str, master: str) -> None:
    given = ["out=/out", "source.path=/raw", f"spark={group}"]
    if group != "yarn":
        with pytest.raises(InputError, match=r"spark\.master is not set"):
            compose("preprocess", PreprocessSettings, given)
        given.append(f"spark.master={master}")
    settings = compose("preprocess", PreprocessSettings, given).spark
    assert settings.master == master
    wanted = ("spark.speculation", "spark.dynamicAllocation.enabled", "spark.dynamicAllocation.shuffleTracking.enabled")
    assert all(settings.conf[name] for name in wanted)
    assert settings.conf["spark.task.maxFailures"] == 4


def test_a_local_master_tries_a_task_as_often_as_a_cluster_does_unless_it_says_otherwise() -> None:
    assert [with_retries(master) for master in ("local[2]", "local[*]")] == ["local[2,4]", "local[*,4]"]
    for master in ("local", "local[2,1]", "spark://host:7077", "local-cluster[2,1,1024]"):
        assert with_retries(master) == master


def test_java_has_a_utf8_locale_whatever_the_shell_has_chosen() -> None:
    for chosen in ({"LC_ALL": "C"}, {"LANG": "POSIX"}, {}, {"LC_ALL": "", "LANG": "de_DE.ISO-8859-1"}):
        environment = dict(chosen)
        name_files_in_utf8(environment)
        assert environment["LC_ALL"] == "C.UTF-8"
    environment = {"LANG": "de_DE.UTF-8"}
    name_files_in_utf8(environment)
    assert environment == {"LANG": "de_DE.UTF-8"}
