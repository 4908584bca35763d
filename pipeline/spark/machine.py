"""What Spark needs, checked before Java starts: Spark itself would say it in a trace, or hang."""

import os
import re
import resource
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.atomic_files import probe_room
from pipeline.errors import InputError, reason_of, writing

_WANTED_FILES, _LEAST_FILES = 4096, 512
_LEAST_HEAP_BYTES = 471_859_200  # Spark's own rule
_UNIT_BYTES = {"": 1 << 20, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
LOOPBACK = "127.0.0.1"
_SCRATCH, _LOCAL_DIRS = "spark.local.dir", "SPARK_LOCAL_DIRS"


_MASTERS = re.compile(
    r"local|local\[(\*|[1-9]\d*)(, *[1-9]\d*)?\]|local-cluster\[\d+, *\d+, *\d+\]|spark://\S+:\d+(,\S+:\d+)*|yarn|k8s://\S+"
)


def refuse_connect(master: str, conf: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError where a Spark Connect session is configured: by the master, spark.conf or the environment."""
    found = [f"spark.master={master}"] if master.startswith("sc://") else []
    found += [
        f"spark.conf has {key}={conf[key]}"
        for key in ("spark.remote", "spark.api.mode")
        if conf.get(key, "classic") != "classic"
    ]
    found += [
        f"the environment has {key}" for key in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED") if environment.get(key)
    ]
    found += ["the environment has SPARK_CONNECT_MODE=1"] if environment.get("SPARK_CONNECT_MODE") == "1" else []
    if found:
        raise InputError(
            f"{found[0]}: that is Spark Connect, which has no SparkContext, and this job ships files to executors, groups its "
            "stages and reads their state by one; take it out, and give spark.master=local[*], spark://HOST:7077, yarn or k8s://…."
        )


def check_master(master: str) -> None:
    """Raise InputError for a spark.master of another form, or yarn without the settings of a cluster."""
    if not _MASTERS.fullmatch(master):
        raise InputError(
            f"spark.master={master} is no master; give local[2], local[*], spark://HOST:7077, yarn or k8s://https://HOST:PORT."
        )
    if master == "yarn" and not {"HADOOP_CONF_DIR", "YARN_CONF_DIR"} & set(os.environ):
        raise InputError(
            "spark.master=yarn needs HADOOP_CONF_DIR; set it to the folder of the cluster's yarn-site.xml."
        )


def check_machine(conf: Mapping[str, str]) -> None:
    """Raise InputError for what Spark could not start or work with; raise the limit of open files as far as it goes."""
    check_heap(conf.get("spark.driver.memory", ""))
    check_scratch(conf)
    _check_loopback()
    _check_open_files()


def scratch_folders(conf: Mapping[str, str]) -> tuple[str, list[Path]]:
    """Return the setting that names Spark's scratch folders, and the folders."""
    for setting, value in ((_LOCAL_DIRS, os.environ.get(_LOCAL_DIRS)), (_SCRATCH, conf.get(_SCRATCH))):
        if value:
            return setting, [Path(part) for part in value.split(",") if part]
    with writing("TMPDIR", "set it to a folder that can be written"):
        return "TMPDIR", [Path(tempfile.gettempdir())]


def check_scratch(conf: Mapping[str, str]) -> None:
    """Raise InputError for a scratch folder, or a TMPDIR, that is missing, full or read-only."""
    if chosen := os.environ.get("TMPDIR"):  # Python would take /tmp in its place without a word
        with writing(f"TMPDIR={chosen}", "set TMPDIR to a folder that can be written"):
            probe_room(Path(chosen))
    setting, folders = scratch_folders(conf)
    for folder in folders:
        with writing(f"{setting}={folder}, Spark's scratch space,", f"set {setting} to another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            probe_room(folder)


def check_heap(text: str) -> None:
    """Raise InputError for a spark.driver.memory that is no size, or too small for Spark."""
    found = re.fullmatch(r"\s*(\d+)\s*([bkmgt]?)b?\s*", text.lower()) if text else None
    if text and not found:
        raise InputError(f"spark.driver.memory={text} is not a size; give a whole number and a unit, such as 2g.")
    if found and int(found.group(1)) * _UNIT_BYTES[found.group(2)] < _LEAST_HEAP_BYTES:
        raise InputError(f"spark.driver.memory={text} is below the 450m that Spark needs to start; give 512m or more.")


def _check_loopback() -> None:
    try:
        # An address can be bound while its interface is down, but not called.
        with socket.create_server((LOOPBACK, 0)) as listener, socket.create_connection(listener.getsockname(), 10):
            pass
    except OSError as error:
        raise InputError(
            f"Python and Java talk over {LOOPBACK}, which this machine does not have ({reason_of(error)}); bring the "
            "loopback interface up, with IPv4 (ip link set lo up)."
        ) from error


def _check_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if most < _LEAST_FILES:
        raise InputError(
            f"The limit of open files is {most}, and Spark needs {_LEAST_FILES} or more; raise it (ulimit -n {_WANTED_FILES})."
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
