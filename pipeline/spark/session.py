"""The Spark session: its defaults, what executors inherit of the environment, and a local master on loopback."""

import os
import re
import sys
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline
from pipeline.config.preprocess import SparkSettings
from pipeline.errors import InputError
from pipeline.kernels.cache import own_directory
from pipeline.scratch import scratch_folder
from pipeline.secrets import SECRET_NAMES, is_secret_name, looked_up, without_assignments
from pipeline.spark.exceptions import first_line, has_java_ended, is_java_error
from pipeline.spark.java import ensure_java
from pipeline.spark.machine import LOOPBACK, check_machine, check_master, refuse_connect, scratch_folders
from pipeline.spark.workers import MALLOC
from pipeline.terminal import stage
from pipeline.undo import handler_kept

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_DEFAULTS = {
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(8 << 20),
    "spark.sql.adaptive.enabled": "false",  # merging our partitions would merge files
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",  # column names of a log, as events/tables checks them
    "spark.python.unix.domain.socket.enabled": "true",  # cheaper than TCP between the JVM and Python
    "spark.buffer.size": str(1 << 20),
    "spark.driver.maxResultSize": "0",  # vocabularies come to the driver: 16 bytes for each id that is kept
    "spark.redaction.regex": f"(?i){SECRET_NAMES}",  # in event logs
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_LOCAL_DEFAULTS = {
    "spark.driver.memory": "2g",
    "spark.driver.host": LOOPBACK,
    "spark.driver.bindAddress": LOOPBACK,
    "spark.shuffle.compress": "false",  # one machine: the shuffle stays in the page cache
}
# The JVM only moves blobs here: compiling it harder, and collecting in parallel, cost 12 CPU s of a small job's 27.
_LOCAL_JAVA_OPTIONS = " -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
_ATTEMPTS = 4
_APP_NAME = "entirespace preprocess"
#: The place and the account of remote files, as far as it is no secret: executors need it too.
_REMOTE_FILES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")


def is_local(master: str) -> bool:
    """Tell whether Spark's workers are threads of this process's JVM."""
    return master.startswith("local") and not master.startswith("local-cluster")


def with_retries(master: str) -> str:
    """Let a local master try a task four times, as clusters do: local[2] would end a job with its first lost worker."""
    return re.sub(r"\Alocal\[(\d+|\*)\]\Z", rf"local[\1,{_ATTEMPTS}]", master)


def name_files_in_utf8(environment: MutableMapping[str, str]) -> None:
    """Choose a UTF-8 locale where there is none, as Python does: Java could not open a path beyond ASCII."""
    chosen = next((environment[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)), "")
    if "utf" not in chosen.lower():
        environment["LC_ALL"] = "C.UTF-8"


def start_spark(settings: SparkSettings) -> "SparkSession":
    """Start a session with our defaults, which `spark.conf` overrides; InputError without Java or the master."""
    refuse_connect(settings.master, settings.conf)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit has started the JVM, and decides on the master
    if not submitted:
        check_master(settings.master)
        ensure_java(os.environ)
        name_files_in_utf8(os.environ)
    own_directory(os.environ)
    root = str(Path(pipeline.__file__).parent.parent)
    # Spark ships a zip (--py-files) to the executors itself; a checkout must have the same path there.
    for_executors = ["NUMBA_CACHE_DIR", *_REMOTE_FILES] + ["PYTHONPATH"] * Path(root).is_dir()
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *paths])
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName(_APP_NAME)
    chosen = dict(_DEFAULTS)
    if not submitted:
        builder = builder.master(with_retries(settings.master))
        java_options = f"-Dlog4j2.configurationFile={root}/conf/spark/log4j2.properties"
        if is_local(settings.master):
            chosen |= _LOCAL_DEFAULTS
            java_options += _LOCAL_JAVA_OPTIONS
            if Path(root).is_dir():  # Python cannot start a module of a zip that Spark ships
                chosen["spark.python.daemon.module"] = "pipeline.spark.daemon"
            os.environ.setdefault("SPARK_LOCAL_IP", LOOPBACK)
        chosen["spark.driver.extraJavaOptions"] = java_options
    for name in for_executors:
        if name in os.environ:
            chosen[f"spark.executorEnv.{name}"] = os.environ[name]
    chosen |= {f"spark.executorEnv.{name}": value for name, value in MALLOC.items()}
    chosen |= _looked_up_conf(settings.conf)
    if not submitted and is_local(settings.master):
        check_machine(chosen)
        if scratch_folders(chosen)[0] == "TMPDIR":  # which Java does not look at
            chosen["spark.local.dir"] = str(scratch_folder())
    for key, value in chosen.items():
        builder = builder.config(key, value)
    try:
        with handler_kept(), _saying(settings.master if not submitted else "spark-submit"):
            if not submitted:
                _start_context(with_retries(settings.master), chosen)
            session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")  # spark-submit brings its own log settings
        return session
    except Exception as error:
        if has_java_ended(error) or "JAVA_GATEWAY_EXITED" in str(error):
            raise InputError(
                f"Spark does not start with spark.master={settings.master}: its Java process has ended (its own "
                "message, if any, stands above); correct spark.conf, JAVA_HOME or the memory of the machine."
            ) from error
        if isinstance(error, (PySparkException, RuntimeError)) or is_java_error(error):
            raise InputError(
                f"Spark does not start with spark.master={settings.master}: {first_line(error)}"
            ) from error
        raise


def _saying(master: str) -> AbstractContextManager[Any]:
    """Say that Spark starts, unless this process has a session already."""
    from pyspark import SparkContext

    return nullcontext() if SparkContext._active_spark_context is not None else stage(f"starting Spark ({master})")


def _start_context(master: str, conf: dict[str, str]) -> None:
    """Start the JVM, and the context in it, where `conf` has secrets.

    PySpark starts a JVM with every setting on its command line, which all users see; secrets follow by its socket.
    """
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    public = {key: value for key, value in conf.items() if not is_secret_name(key)}
    if len(public) == len(conf) or SparkContext._active_spark_context is not None:
        return
    own = {"spark.master": master, "spark.app.name": _APP_NAME}
    gateway = launch_gateway(SparkConf(loadDefaults=False).setAll(list((own | public).items())))
    SparkContext(conf=SparkConf(loadDefaults=False).setAll(list((own | conf).items())), gateway=gateway)


def _looked_up_conf(conf: dict[str, Any]) -> dict[str, str]:
    """Return `spark.conf` by Spark's keys, with what it names of the environment."""
    found = {key: looked_up(f"spark.conf.{key}", value) for key, value in _dotted_keys(conf).items()}
    for key, value in found.items():
        if key.endswith("JavaOptions") and without_assignments(value) != value:
            raise InputError(
                f"spark.conf.{key}={without_assignments(value)} holds a secret, and Java's options are seen by every user; "
                "give it as a property of its own, such as spark.hadoop.NAME."
            )
    return found


def stop_spark() -> None:
    """End the session, if there is one: executors that lose their driver at its exit log long errors."""
    if pyspark := sys.modules.get("pyspark.sql"):
        try:
            session = pyspark.SparkSession.getActiveSession()
            if session is not None:
                session.stop()
        except Exception as error:
            if not has_java_ended(error):
                raise


def _dotted_keys(conf: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a nested mapping to Spark's dotted keys: `spark.conf.spark.driver.memory=4g` arrives nested."""
    dotted: dict[str, str] = {}
    for key, value in conf.items():
        if isinstance(value, dict):
            dotted |= _dotted_keys(value, f"{prefix}{key}.")
        else:
            dotted[f"{prefix}{key}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return dotted
