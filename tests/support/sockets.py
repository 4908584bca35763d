"""The sockets that a process and those below it listen on, as the kernel lists them."""

import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LISTENS = "0A"  # of TCP; a UDP socket that is bound receives in state 07
_BOUND = "07"


class Listener(NamedTuple):
    """A socket that accepts connections, or receives datagrams, from whoever reaches its address."""

    address: str
    port: int
    pid: int

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this host reach it."""
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def process_tree(pid: int) -> list[int]:
    """List `pid` and all processes below it."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):  # a thread that has just ended: the others' children count all the same
            children += map(int, (task / "children").read_text().split())
    return [pid, *(found for child in children for found in process_tree(child))]


def listeners_of(pid: int) -> list[Listener]:
    """List the TCP and UDP sockets of `pid` and all processes below it that anyone can write to."""
    owners = {inode: process for process in process_tree(pid) for inode in _inodes(process)}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if inode in owners and state == (_LISTENS if table.startswith("tcp") else _BOUND):
                address, port = local.split(":")
                found.append(Listener(_text(address), int(port, 16), owners[inode]))
    return found


def knock(listener: Listener, garbage: bytes) -> None:
    """Write `garbage` to the socket, as a stranger would."""
    with suppress(OSError), socket.create_connection((listener.address, listener.port), timeout=5) as stranger:
        stranger.sendall(garbage)


def _inodes(pid: int) -> list[str]:
    found = []
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                kind, _, inode = os.readlink(entry.path).partition(":")
                found += [inode.strip("[]")] * (kind == "socket")
    return found


def _text(address: str) -> str:
    """Convert the kernel's form: words of four bytes, each in the order of this machine."""
    packed = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    return str(ipaddress.ip_address(packed))
