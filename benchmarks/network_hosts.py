"""Two hosts on one machine: network namespaces joined by a cable, which can be cut, slowed and made to lose packets.

    with TwoHosts() as hosts:
        hosts.command(0, ["torchrun", …])      a command, as the first host runs it
        with hosts.cable(delay_s=0.05, loss=0.01): …
        with hosts.cut(): …

A namespace has its own loopback, addresses, ports and connections; files, process ids and the host's name are shared.
The cable is a process that copies frames between TAP devices (`benchmarks.cable`), or, as fast as the kernel can and as good as new, a
veth pair (`is_fast`). Needs root and iproute2 (ip).
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from benchmarks.cable import DEVICE
from benchmarks.torchrun_runs import Ended, Run, kill_all, ranks_of

ROOT = Path(__file__).resolve().parent.parent
PORT = 29400
_HANG_S, AFTER_A_FAILURE_S = 240.0, 45.0


class TwoHosts:
    """The hosts while the context lasts; `addresses` are theirs."""

    def __init__(self, is_fast: bool = False) -> None:
        number = os.getpid() % 200 + 20
        self.addresses = (f"10.99.{number}.1", f"10.99.{number}.2")
        self.names = tuple(f"entirespace-{os.getpid()}-{host}" for host in (0, 1))
        self.interfaces = ("veth0", "veth1") if is_fast else (DEVICE, DEVICE)
        self._is_fast = is_fast
        self._cable: subprocess.Popen[str] | None = None

    def __enter__(self) -> "TwoHosts":
        try:
            self._set_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _set_up(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
        if self._is_fast:
            (first, second), (end, other_end) = self.names, self.interfaces
            _ip("link", "add", end, "netns", first, "type", "veth", "peer", "name", other_end, "netns", second)
        else:
            command = [sys.executable, "-m", "benchmarks.cable", *self.names]
            self._cable = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._told("ready")
        for name, interface, address in zip(self.names, self.interfaces, self.addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", interface, "up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cable:
            self._cable.communicate(timeout=30)
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            _ip("netns", "del", name)

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """Return `command` as it runs on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]

    def environment(self, host: int) -> dict[str, str]:
        """Return the variables of a rank there: gloo takes the cable, whatever the host's name resolves to."""
        return os.environ | {"GLOO_SOCKET_IFNAME": self.interfaces[host], "OMP_NUM_THREADS": "1"}

    @contextlib.contextmanager
    def cable(self, delay_s: float = 0.0, loss: float = 0.0) -> Iterator[None]:
        """Let frames take `delay_s` in each direction, and lose a share of them, for the length of the block."""
        self._change(delay_s, loss)
        try:
            yield
        finally:
            self._change(0.0, 0.0)

    def _change(self, delay_s: float, loss: float) -> None:
        assert self._cable is not None, "a veth pair is as it is"
        assert self._cable.stdin is not None
        self._cable.stdin.write(f"delay_s={delay_s} loss={loss}\n")
        self._cable.stdin.flush()
        self._told("changed")

    def _told(self, word: str) -> None:
        assert self._cable is not None
        assert self._cable.stdout is not None
        found = self._cable.stdout.readline().strip()
        assert found == word, f"the cable says {found!r}"

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Pull the cable out: nothing arrives, and nobody is told."""
        with self.cable(loss=1.0):
            yield

    def torchrun(self, host: int, *options: str, port: int = PORT) -> list[str]:
        """Return the beginning of torchrun's line on a host, of one rank there; the first host serves the rendezvous."""
        return self.command(
            host,
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "0",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.addresses[0]}:{port}", "--rdzv-id", "two-hosts",
             "--rdzv-conf", f"is_host={'true' if host == 0 else 'false'},join_timeout=60",
             "--local-addr", self.addresses[host], *options],
        )  # fmt: skip


@dataclass
class RunOnTwoHosts(Run):
    """A run of one rank on each of two hosts, started as often as needed; a torchrun on each."""

    hosts: TwoHosts = field(default_factory=TwoHosts)
    options: Sequence[str] = ()
    module: str = "benchmarks.traced_rank"
    _port: int = PORT

    def start_both(self) -> "list[subprocess.Popen[bytes]]":
        """Start a torchrun on each host; the output of each goes to a file of its own."""
        self.trace.mkdir(parents=True, exist_ok=True)
        self.traced_before = self._traced_bytes()
        self._port += 1  # of a start before, a store may still listen
        return [self._start_on(host) for host in (0, 1)]

    def _start_on(self, host: int) -> "subprocess.Popen[bytes]":
        command = self.hosts.torchrun(host, *self.options, port=self._port)
        command += ["-m", self.module, f"data={self.data}", f"out={self.out}", *self.overrides]
        environment = self.hosts.environment(host) | {"TRACE": str(self.trace)}
        with self.output_of(host).open("wb") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def output_of(self, host: int) -> Path:
        """Return the file with what the latest start on a host said."""
        return self.out.with_name(f"{self.out.name}.host-{host}.txt")

    def finish_both(self, started: "Sequence[subprocess.Popen[bytes]]", timeout_s: float = _HANG_S) -> list[Ended]:
        """Wait for the end on both hosts; TimeoutError with what they said where one hangs.

        Some time after one host has failed the other one is killed, as `srun --kill-on-bad-exit` and Kubernetes do: torchrun on a
        host that is cut off waits for the store of the first host as long as it is.
        """
        deadline_s = time.monotonic() + timeout_s
        while all(process.poll() is None for process in started) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if any(process.poll() for process in started):
            patience_s = time.monotonic() + AFTER_A_FAILURE_S
            while any(process.poll() is None for process in started) and time.monotonic() < patience_s:
                time.sleep(0.05)
            for process in started:
                if process.poll() is None:
                    kill_all(process)
        for process in started:
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                said = [self.output_of(host).read_text(errors="replace")[-1500:] for host in (0, 1)]
                for one in started:
                    kill_all(one)
                raise TimeoutError(f"no end within {timeout_s:g} s: {said}") from None
        ended = [
            Ended(process.wait(), self.output_of(host).read_text(errors="replace"))
            for host, process in enumerate(started)
        ]
        self.started += ended
        return ended

    def start_until_done(self, most: int = 5) -> int:
        """Start both hosts again until the run is done, as a scheduler's requeue does; return the number of starts."""
        for number in range(1, most + 1):
            ended = self.finish_both(self.start_both())
            if all(one.status == 0 for one in ended):
                return number
        raise AssertionError(f"not done after {most} starts: {ended}")


def rank_on(process: "subprocess.Popen[bytes]") -> int:
    """Return the process id of the rank that a host's torchrun has started (`ip netns exec` becomes torchrun)."""
    return ranks_of(process)[0]


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
