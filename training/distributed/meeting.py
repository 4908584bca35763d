"""The ranks find each other: a store that all of them reach, and who has come to it.

Ranks of one host meet in a file, and gloo listens on loopback: no port is open to others. Ranks of several hosts meet in
the store of torchrun, which is unauthenticated (docs/security.md).
"""

import ipaddress
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.errors import InputError, TryAgainError
from training.distributed.torchrun import Place

_LOOK_S = 0.02
_FOLDER = "entirespace-ranks"
_LEFT_BEHIND_S = 30 * 24 * 3600.0
#: The network interface of gloo and of NCCL, by the variable that they read.
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_TORCHRUN_LISTENS = (
    "warning: torchrun listens on every address of this host, and runs code that a stranger sends there; start with "
    "`python -m jobs.train ranks=N` instead, or torchrun as docs/security.md says."
)


@dataclass(frozen=True)
class Meeting:
    """The ranks that have come, and the store that they share."""

    store: Any
    path: Path | None = None  # of the store, on one host
    pids: tuple[int, ...] = ()  # by rank, on one host

    def is_gone(self, rank: int) -> bool:
        """Tell whether the process of `rank` has ended; False where that cannot be seen."""
        if not self.pids:
            return False
        try:
            # The state stands behind the command, which may hold anything. Z: its parent has not asked yet.
            state = Path(f"/proc/{self.pids[rank]}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return Path("/proc/self").exists()
        return state in "ZX"

    def gone(self) -> str:
        """Name the ranks that have ended, as far as that can be seen; "" for none."""
        return ", ".join(f"rank {rank} (process {pid})" for rank, pid in enumerate(self.pids) if self.is_gone(rank))


def meet(place: Place, timeout_s: float) -> Meeting:
    """Wait until every rank has come to the store.

    Raises TryAgainError that names the missing ranks after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    if place.is_one_host:
        if place.shares_store and place.rank == 0:
            print(_TORCHRUN_LISTENS, file=sys.stderr, flush=True)
        os.environ.update(dict.fromkeys(_INTERFACES, "lo"))
        path = own_folder() / place.start
        meeting = Meeting(dist.FileStore(str(path), place.size), path)  # type: ignore[attr-defined]
    else:
        meeting = Meeting(_store_of_torchrun(place, timeout_s))
    store = meeting.store
    store.set(_arrival_of(place.rank), str(os.getpid()))
    missing = list(range(place.size))
    # Not store.wait: no signal interrupts it.
    while missing := [rank for rank in missing if not store.check([_arrival_of(rank)])]:
        if time.monotonic() > deadline_s:
            raise TryAgainError(_not_come(missing, place, timeout_s))
        time.sleep(_LOOK_S)
    if meeting.path is None:
        return meeting
    return replace(meeting, pids=tuple(int(store.get(_arrival_of(rank))) for rank in range(place.size)))


def own_folder() -> Path:
    """Make the folder of the files in which ranks meet, with mode 0700; remove what killed ranks left a month ago.

    Raises InputError if another user could write to it.
    """
    path = Path(tempfile.gettempdir()) / f"{_FOLDER}-{os.geteuid()}"
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise InputError(
            f"The ranks cannot meet in {path} ({error.strerror}); set TMPDIR to a folder of your own."
        ) from error
    if status.st_uid != os.geteuid() or (status.st_mode & 0o170077) != 0o040000:
        raise InputError(
            f"The ranks cannot meet in {path}: it is not a folder that you alone may use; remove it, or set TMPDIR to a "
            "folder of your own."
        )
    for left in path.iterdir():
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_BEHIND_S:
                left.unlink()
    return path


def _store_of_torchrun(place: Place, timeout_s: float) -> Any:
    """Open the TCP store at MASTER_ADDR and MASTER_PORT, which torchrun serves, or rank 0."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    serves = place.rank == 0 and not place.shares_store
    try:
        with _listener_at(address, int(port)) if serves else nullcontext() as listener:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                address,
                int(port),
                is_master=serves,
                timeout=timedelta(seconds=timeout_s),
                wait_for_workers=False,
                master_listen_fd=listener.detach() if listener else None,
            )
    except (dist.DistError, OSError, ValueError) as error:
        raise TryAgainError(
            f"Rank {place.rank} of {place.size} did not reach the store of the others at {address}:{port} (MASTER_ADDR, "
            f"MASTER_PORT) within world.timeout_s={timeout_s:g}. Check that torchrun or rank 0 runs there, and that this "
            "host reaches that address."
        ) from error
    # Trap: torchrun's store outlives a restart of the ranks, and so would the addresses of the ranks before it.
    return dist.PrefixStore(f"start-{place.restarts}", store)  # type: ignore[attr-defined]


@contextmanager
def _listener_at(address: str, port: int) -> Iterator[socket.socket | None]:
    """Listen on `address` alone; yield None for a name, which other hosts may resolve to another address.

    By itself torch listens on every address.
    """
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        yield None
        return
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        yield listener


def _arrival_of(rank: int) -> str:
    return f"here/{rank}"


def _not_come(missing: list[int], place: Place, timeout_s: float) -> str:
    who = f"Rank {missing[0]}" if len(missing) == 1 else f"Ranks {', '.join(map(str, missing))}"
    return (
        f"{who} of {place.size} did not come within world.timeout_s={timeout_s:g}. Look for the cause in the output of "
        "those ranks, then run the same command again. If they are only slow to start, raise world.timeout_s."
    )
