"""The environment that torchrun gives a process, for modules that run before torch is loaded.

The only module that reads RANK, WORLD_SIZE and their like. `training.distributed.launch_ranks` starts torchrun's agent, so
its ranks have the same environment.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import xxhash

from pipeline.errors import InputError

_AFTER_THE_ERROR_S = 3.0


@dataclass(frozen=True)
class Place:
    """This process's place among the ranks."""

    rank: int
    size: int
    local_rank: int
    local_size: int  # ranks of this host; 0: unknown
    start: str  # differs for each start of the ranks of this host, by hand or after a failure; "" without torchrun
    restarts: str = "0"  # how often torchrun has started the ranks again; the same on every host
    shares_store: bool = False  # torchrun serves a store, which the ranks may use

    @property
    def is_one_host(self) -> bool:
        """Whether all ranks are on this host."""
        return bool(self.start) and self.local_size == self.size


def place_of(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return this process's place; None for a process of its own."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    start = ""
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
        # Trap: torchrun gives every file rendezvous the id "none". Its folder for errors is of one start alone.
        folder = os.path.dirname(os.path.dirname(environment.get("TORCHELASTIC_ERROR_FILE", "")))
        start = xxhash.xxh3_64_hexdigest("\0".join([folder, *(environment.get(name, "") for name in names)]).encode())
    return Place(
        int(environment["RANK"]),
        int(environment["WORLD_SIZE"]),
        int(environment.get("LOCAL_RANK", "0")),
        int(environment.get("LOCAL_WORLD_SIZE", "0")),
        start,
        environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def cores_of_rank(place: Place) -> int:
    """Return this rank's part of the cores that its process may use."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, place.local_size))


def starts_ranks(ranks: int) -> bool:
    """Tell whether this process has to start `ranks` processes, and is not one of them.

    Raises InputError for a number below 1, for another one than torchrun's, and for restarts by torchrun across hosts.
    """
    if ranks < 1:
        raise InputError(f"ranks={ranks} is below 1; 1 trains in this process.")
    place = place_of()
    if place is None:
        return ranks > 1
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") or "0")
    if restarts > 0 and not place.is_one_host:
        raise InputError(
            f"--max-restarts={restarts} restarts the ranks of several hosts under torchrun, whose agents may then wait for each "
            "other for ever; give --max-restarts=0, and start the same command again on every host: it resumes."
        )
    if ranks not in (1, place.size):
        raise InputError(f"ranks={ranks} does not go with the {place.size} ranks of torchrun; leave it out.")
    return False


def note_error(message: str) -> float:
    """Write `message` where torchrun looks for it: it is the last thing that torchrun prints, below its own traceback.

    Returns the seconds that this rank has to wait before it ends. torchrun kills the ranks of a host when the first one
    ends, so the others wait until rank 0 has printed the message. Of several hosts the first one waits: the rendezvous ends
    with it, and torchrun on another host would print a traceback about that.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)
    content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    if path != os.devnull:
        with suppress(OSError), open(path, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
    place = place_of()
    if (
        place is None
        or (place.is_one_host and place.rank == 0)
        or (not place.is_one_host and place.rank >= place.local_size)
    ):
        return 0.0
    return _AFTER_THE_ERROR_S


def rank_of_process() -> int:
    """Return this process's rank, which is known before the ranks have met; 0 without torchrun."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def speaks() -> bool:
    """Return True on rank 0, the one that prints."""
    return rank_of_process() == 0
