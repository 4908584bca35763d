"""A Spark standalone cluster on this machine: a master, and workers on loopback addresses, started as Spark's own scripts do.

PySpark's wheel has the classes and no sbin/. Each worker has an address of its own (127.0.0.1, 127.0.0.2, …), for Spark
never runs two attempts of a task on one host.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import pyspark

from pipeline.spark.java import ensure_java

ROOT = Path(__file__).resolve().parent.parent
SPARK_HOME = Path(pyspark.__file__).parent
_START_S = 180


class Standalone:
    """The cluster while the context lasts; `master` is its address."""

    def __init__(self, directory: Path, num_workers: int = 2, cores: int = 1, memory: str = "1g") -> None:
        self.directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._num_workers, self._cores, self._memory = num_workers, cores, memory
        self.master = ""

    def __enter__(self) -> "Standalone":
        port = free_port()
        self.master = f"spark://127.0.0.1:{port}"
        self._start("master.Master", ["--host", "127.0.0.1", "--port", str(port), "--webui-port", str(free_port())])
        _await(lambda: _listens(port), "the master")
        for number in range(self._num_workers):
            host, work = f"127.0.0.{number + 1}", self.directory / f"worker{number}"
            self._start(
                "worker.Worker",
                ["--host", host, "--cores", str(self._cores), "--memory", self._memory, "--work-dir", str(work),
                 "--webui-port", str(free_port()), self.master],
                SPARK_LOCAL_IP=host,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(timeout=30)

    def conf(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return Spark settings for a job on this cluster: its driver listens on loopback."""
        small = {"spark.driver.host": "127.0.0.1", "spark.driver.memory": "512m", "spark.executor.memory": "512m"}
        return small | dict(more)

    def overrides(self, conf: Mapping[str, str]) -> list[str]:
        """Return the same settings as arguments of a job."""
        settings = ", ".join(f"{name}: {value}" for name, value in conf.items())
        return [f"spark.master={self.master}", f"+spark.conf={{{settings}}}"]

    def executors(self) -> list[int]:
        """List the process ids of the executors."""
        workers = {process.pid for process in self._processes[1:]}
        return [pid for pid, (parent, line) in processes().items() if parent in workers and "CoarseGrained" in line]

    def _start(self, what: str, arguments: list[str], **environment: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        variables = without_checkout() | {"SPARK_HOME": str(SPARK_HOME), "SPARK_SCALA_VERSION": "2.13"} | environment
        command = [str(ensure_java(variables)), "-Xmx256m", "-cp", f"{SPARK_HOME}/jars/*",
                   f"-Dlog4j2.configurationFile={ROOT}/conf/spark/log4j2.properties",
                   f"org.apache.spark.deploy.{what}", *arguments]  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(command, env=variables, cwd=self.directory, stdout=log, stderr=log)
        self._processes.append(process)


def without_checkout() -> dict[str, str]:
    """Return this process's environment with Java and without PYTHONPATH: executors inherit what a worker is started with."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    ensure_java(variables)
    return variables


def processes() -> dict[int, tuple[int, str]]:
    """Map every visible process id to (parent, command line)."""
    found: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found[int(entry.name)] = (parent, line)
    return found


def descendants(root: int) -> list[int]:
    """List the processes below one, nearest first."""
    table = processes()
    found = [root]
    for pid in found:
        found += [child for child, (parent, _) in table.items() if parent == pid]
    return found[1:]


def python_workers(root: int) -> list[int]:
    """List the processes below `root` in which Spark's tasks run Python: PySpark's daemon forks them."""
    table = processes()
    daemons = {pid for pid, (_, line) in table.items() if "spark.daemon" in line}
    return [pid for pid in descendants(root) if pid in daemons and table[pid][0] in daemons]


def free_port() -> int:
    """Find a port that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _await(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start in {_START_S} s")
        time.sleep(0.05)
