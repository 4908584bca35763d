"""A Spark standalone cluster on this machine: a master, and workers on loopback addresses, started as Spark's own scripts do.

PySpark's wheel has the classes and no sbin/. Each worker has an address of its own (127.0.0.1, 127.0.0.2, …), for Spark
never runs two attempts of a task on one host. With `benchmarks.network_hosts` each worker has a network of its own, and so its own
port for the external shuffle service.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyspark

from benchmarks.network_hosts import TwoHosts
from pipeline.spark.java import ensure_java

ROOT = Path(__file__).resolve().parent.parent
SPARK_HOME = Path(pyspark.__file__).parent
_START_S = 180


class Standalone:
    """The cluster while the context lasts; `master` is its address."""

    def __init__(
        self,
        directory: Path,
        num_workers: int = 2,
        cores: int = 1,
        memory: str = "1g",
        hosts: TwoHosts | None = None,
        worker_conf: Mapping[str, str] | None = None,
    ) -> None:
        """`hosts` are where the workers are, the master on the first one; without them all are on loopback addresses."""
        self.directory = directory
        self._master: subprocess.Popen[bytes] | None = None
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._num_workers, self._cores, self._memory = num_workers, cores, memory
        self._hosts, self._worker_conf = hosts, dict(worker_conf or {})
        self.addresses = (
            hosts.addresses if hosts else tuple(f"127.0.0.{number + 1}" for number in range(max(1, num_workers)))
        )
        self.master = ""

    def __enter__(self) -> "Standalone":
        port, host = free_port(), self.addresses[0]
        self.master = f"spark://{host}:{port}"
        arguments = ["--host", host, "--port", str(port), "--webui-port", str(free_port())]
        self._master = self._start("master.Master", 0, arguments)
        _await(lambda: self._listens(port), "the master")
        for number in range(self._num_workers):
            self.start_worker(number)
        return self

    def start_worker(self, number: int) -> None:
        """Start a worker, or start one that has ended again."""
        work = self.directory / f"worker{number}"
        arguments = ["--host", self.addresses[number], "--cores", str(self._cores), "--memory", self._memory, "--work-dir", str(work),
                     "--webui-port", str(free_port()), self.master]  # fmt: skip
        self._workers[number] = self._start("worker.Worker", number, arguments, self._worker_conf)

    def kill_worker(self, number: int) -> None:
        """End a worker at once; its executors end with it, and so does its shuffle service."""
        self._workers[number].kill()
        self._workers[number].wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = [*self._workers.values(), *([self._master] if self._master else [])]
        for process in ended:
            process.terminate()
        for process in ended:
            process.wait(timeout=30)

    def within(self, command: list[str]) -> list[str]:
        """Return a driver's command, as the first host runs it."""
        return self._hosts.command(0, command) if self._hosts else command

    def conf(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return Spark settings for a job on this cluster: its driver listens on loopback."""
        small = {"spark.driver.host": self.addresses[0], "spark.driver.memory": "512m", "spark.executor.memory": "512m"}
        return small | dict(more)

    def overrides(self, conf: Mapping[str, str]) -> list[str]:
        """Return the same settings as arguments of a job."""
        settings = ", ".join(f"{name}: {value}" for name, value in conf.items())
        return [f"spark.master={self.master}", f"+spark.conf={{{settings}}}"]

    def history(self, events: Path) -> list[Any]:
        """Start Spark's history server on loopback over a folder of event logs; return what its REST API lists."""
        port = free_port()
        conf = {"spark.history.fs.logDirectory": f"file:{events}", "spark.history.ui.port": str(port)}
        server = self._start("history.HistoryServer", 0, [], conf)
        try:
            _await(lambda: self._listens(port), "the history server")
            address = f"http://{self.addresses[0]}:{port}/api/v1/applications"
            deadline = time.monotonic() + _START_S
            while not (found := json.loads(urllib.request.urlopen(address, timeout=30).read())):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the history server lists nothing of {events}")
                time.sleep(0.2)
            return list(found)
        finally:
            server.terminate()
            server.wait(timeout=30)

    def executors(self) -> list[int]:
        """List the process ids of the executors."""
        workers = {process.pid for process in self._workers.values()}
        return [pid for pid, (parent, line) in processes().items() if parent in workers and "CoarseGrained" in line]

    def _start(
        self, what: str, number: int, arguments: list[str], conf: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        self.directory.mkdir(parents=True, exist_ok=True)
        variables = without_checkout() | {"SPARK_HOME": str(SPARK_HOME), "SPARK_SCALA_VERSION": "2.13"}
        variables["SPARK_LOCAL_IP"] = self.addresses[number]
        command = [str(ensure_java(variables)), "-Xmx256m", "-cp", f"{SPARK_HOME}/jars/*",
                   f"-Dlog4j2.configurationFile={ROOT}/conf/spark/log4j2.properties",
                   *(f"-D{name}={value}" for name, value in (conf or {}).items()),
                   f"org.apache.spark.deploy.{what}", *arguments]  # fmt: skip
        if self._hosts:
            command = self._hosts.command(number, command)
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(command, env=variables, cwd=self.directory, stdout=log, stderr=log)

    def _listens(self, port: int) -> bool:
        call = f"import socket; socket.create_connection(({self.addresses[0]!r}, {port}), 5)"
        return subprocess.run(self.within([sys.executable, "-c", call]), capture_output=True).returncode == 0


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


def _await(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start in {_START_S} s")
        time.sleep(0.05)
