"""A real Slurm of two nodes on this host: slurmctld and two slurmd on loopback, with their own state, started and stopped by pid.

Nothing authenticates here, and nodes are only names: one host plays both. Commands find it by SLURM_CONF.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
#: A variable by which the processes of a node are found: its slurmd and the slurmstepd that it starts have it.
MARK = "ENTIRESPACE_TEST_NODE"
FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL")

CONFIGURATION = """\
ClusterName=entirespace
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,requeue_delay=0
SlurmdParameters=config_overrides
SlurmdTimeout=6
KillWait=5
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=8 RealMemory=64000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=8 RealMemory=64000
PartitionName=low Nodes=n1,n2 Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n1,n2 State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmCluster:
    """The cluster, while the block runs."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
        assert not missing, f"{', '.join(missing)} of Slurm are not installed; make cluster-tools"
        self._folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> "SlurmCluster":
        self._folder.mkdir(parents=True)
        (self._folder / "state").mkdir()
        ports = dict(zip(("port", "port_1", "port_2"), free_ports(3), strict=True))
        text = CONFIGURATION.format(host=socket.gethostname(), folder=self._folder, **ports)
        (self._folder / "slurm.conf").write_text(text)
        try:
            self._start("slurmctld", "slurmctld", "-D", "-c")
            for node in NODES:
                self.start_node(node)
            self.wait_until(lambda: all(self.node(node)["State"] == "IDLE" for node in NODES), 60, "two idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--state=PENDING,RUNNING,SUSPENDED", "--user=root", check=False)
        for node in NODES:
            for pid in self.processes_of(node):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait(10)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._start(node, "slurmd", "-D", "-N", node, **{MARK: node})

    def kill_node(self, node: str) -> None:
        """Kill a node at once: its slurmd, and all that it has started."""
        for pid in self.processes_of(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._daemons.pop(node).wait(10)

    def processes_of(self, node: str) -> list[int]:
        """List the processes of a node: those with its mark, and their children."""
        parents = dict(_parents())
        found = {pid for pid in parents if f"{MARK}={node}" in environment_of(pid)}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def ranks_of(self, run: Path) -> list[int]:
        """List the processes that train `run`: not the agents that start them."""
        return [
            pid
            for pid, _ in _parents()
            if "jobs.train" in (words := command_of(pid))
            and f"out={run}" in words
            and not any("launch_ranks" in word or "run_stage" in word or "srun" in word for word in words)
        ]

    def run(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run one of Slurm's commands, or one of ours, against this cluster."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def submit(self, *words: str) -> dict[str, str]:
        """Run jobs.submit cluster=slurm; return the numbers of the jobs by their stages."""
        done = self.run(sys.executable, "-m", "jobs.submit", "cluster=slurm", *words)
        return dict(re.findall(r"^(\w+): job (\d+)", done.stdout, re.MULTILINE))

    def job(self, number: str) -> dict[str, str]:
        """Return what scontrol says of a job."""
        return parsed(self.run("scontrol", "--oneliner", "show", "job", number).stdout.splitlines()[0])

    def tasks(self, number: str) -> list[dict[str, str]]:
        """Return what scontrol says of each task of an array."""
        return [parsed(line) for line in self.run("scontrol", "--oneliner", "show", "job", number).stdout.splitlines()]

    def node(self, name: str) -> dict[str, str]:
        """Return what scontrol says of a node; its state is empty while the controller does not answer."""
        done = self.run("scontrol", "--oneliner", "show", "node", name, check=False)
        return {"State": "", **parsed(done.stdout)}

    def wait_for(self, number: str, *states: str, timeout_s: float = 400) -> None:
        """Wait until all tasks of a job are in one of `states`; fail where one has ended in another."""
        wanted = states or ("COMPLETED",)

        def are_there() -> bool:
            found = [task["JobState"] for task in self.tasks(number)]
            ended = [state for state in found if state in FINISHED and state not in wanted]
            assert not ended, f"job {number} ended as {ended}:\n{self.report()}"
            return all(state in wanted for state in found)

        self.wait_until(are_there, timeout_s, f"job {number} in {wanted}")

    def wait_until(self, is_so: Callable[[], Any], timeout_s: float, what: str) -> None:
        """Wait for a condition; fail with the logs."""
        end_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < end_s, f"no {what} within {timeout_s:g} s:\n{self.report()}"
            time.sleep(0.3)

    def report(self) -> str:
        """Return the queue, and the end of every log."""
        texts = [self.run("squeue", "--all", check=False).stdout]
        logs = [*self._folder.glob("*.log"), *self._folder.parent.rglob("logs/*.log")]
        texts += [f"── {path}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(logs)]
        return "\n".join(texts)

    def _start(self, name: str, *command: str, **variables: str) -> None:
        with (self._folder / f"{name}.output").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment | variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )


def parsed(line: str) -> dict[str, str]:
    """Parse KEY=VALUE KEY=VALUE; a value with spaces loses what stands behind the first."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", line))


def free_ports(count: int) -> list[int]:
    """Return ports of loopback on which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            yield int(path.parent.name), int(path.read_text(errors="replace").rpartition(")")[2].split()[1])


def command_of(pid: int) -> list[str]:
    """Return the words of a process's command; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def environment_of(pid: int) -> list[str]:
    """Return NAME=VALUE of a process's environment as it was started; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []
