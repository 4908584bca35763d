"""A network cable in software: frames between two TAP devices, delayed, lost at random, or all of them lost.

    python -m benchmarks.cable NAMESPACE0 NAMESPACE1      makes the device tap0 in each, and prints "ready"

A line of standard input changes it: `delay_s=0.05 loss=0.01`, or `loss=1` for a cable that is pulled out. It does what `tc … netem`
does, for kernels without that. Needs root.
"""

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import threading
import time
from contextlib import suppress

DEVICE = "tap0"
_CLONE_NEWNET, _TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _LARGEST_FRAME = 0x40000000, 0x400454CA, 0x0002, 0x1000, 65536


def tap_in(namespace: str) -> int:
    """Make a TAP device in a network namespace; return its file. A thread of its own changes into the namespace."""
    opened: list[int] = []

    def make() -> None:
        with open(f"/var/run/netns/{namespace}", "rb") as entry:
            if ctypes.CDLL(None, use_errno=True).setns(entry.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        tap = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TAP | _IFF_NO_PI))
        opened.append(tap)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return opened[0]


def main() -> None:
    taps = [tap_in(namespace) for namespace in sys.argv[1:3]]
    other = dict(zip(taps, reversed(taps), strict=True))
    print("ready", flush=True)
    quality, draw, order = {"delay_s": 0.0, "loss": 0.0}, random.Random(1), itertools.count()
    under_way: list[tuple[float, int, int, bytes]] = []  # when it arrives, its number, where, what
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([*taps, sys.stdin], [], [], wait_s)
        now_s = time.monotonic()
        for source in readable:
            if source is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    return
                quality |= {name: float(value) for name, value in (word.split("=") for word in line.split())}
                print("changed", flush=True)
                continue
            frame = os.read(source, _LARGEST_FRAME)
            if draw.random() >= quality["loss"]:
                heapq.heappush(under_way, (now_s + quality["delay_s"], next(order), other[source], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(under_way)
            with suppress(OSError):  # a device that is down takes nothing
                os.write(target, frame)


if __name__ == "__main__":
    main()
