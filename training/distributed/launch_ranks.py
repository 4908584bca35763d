"""Start the ranks of one host by torchrun's agent, in this process, so that nothing listens beyond loopback.

By itself torchrun serves two TCP stores on every address of the host, and unpickles what it finds in one of them. Here its
rendezvous is a file, it serves no store, and the ranks meet in another file (`training.distributed.meeting`).

On each of several hosts, `python -m training.distributed.launch_ranks TORCHRUN'S_ARGUMENTS` is torchrun with another end:
its exit status is that of the rank that brought the others down, the rank's own message is the last on the screen, and a
signal waits for the checkpoint.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.run import parse_args
from torch.distributed.run import run as torchrun

from pipeline.errors import reason_of
from training.distributed.meeting import own_folder

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SIGNAL_OF_THE_AGENT = "SIGUSR2"  # it needs one; it would end the ranks at those of _PASSED_ON
_BY_A_SIGNAL = 128  # what a shell adds to the number of the signal that ended a command


def run_on_ranks(module: str, arguments: Sequence[str], ranks: int) -> int:
    """Run `python -m module arguments` on `ranks` ranks of this host; return the exit status of the rank that brought it down.

    Signals go to every rank. A rank that a signal ended is named on stderr, behind what the others say of it.
    """
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else the agent serves one on every address
    rendezvous = own_folder() / f"agent-{uuid.uuid4()}"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=rendezvous.name,
        rdzv_backend="c10d",
        rdzv_endpoint=str(rendezvous),
        rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        signals_to_handle=_SIGNAL_OF_THE_AGENT,
    )
    try:
        return _status_of_ranks(lambda: elastic_launch(config, sys.executable)("-m", module, *arguments))
    finally:
        rendezvous.unlink(missing_ok=True)


def run_torchrun(arguments: Sequence[str]) -> int:
    """Run torchrun with `arguments` on this host of several; return the exit status of the rank that brought the ranks down.

    It is 75 where the hosts did not find each other.
    """
    parsed = parse_args([*arguments])
    parsed.signals_to_handle = _SIGNAL_OF_THE_AGENT
    try:
        return _status_of_ranks(lambda: torchrun(parsed))
    except (RendezvousError, DistError) as error:
        print(
            f"error: The hosts did not meet at {parsed.rdzv_endpoint} ({reason_of(error)}); check that the first of them is "
            "up and that this host reaches it, then run the same command again.",
            file=sys.stderr,
            flush=True,
        )
        return os.EX_TEMPFAIL


def _status_of_ranks(launch_agent: Callable[[], object]) -> int:
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the ranks say what went wrong
    with _signals_passed_on() as received:
        try:
            launch_agent()
        except ChildFailedError as failed:
            return _status_of(failed, received)
    return 0


def _status_of(failed: ChildFailedError, received: Sequence[int]) -> int:
    rank, failure = _origin_of(failed)
    if failure.exitcode >= 0:
        return failure.exitcode
    number = -failure.exitcode
    name = signal.Signals(number).name
    message = (
        f"The ranks were stopped by {name}; the same command starts them again."
        if number in received
        else f"Rank {rank} (process {failure.pid}) was ended by {name}; the same command resumes from the last complete "
        f"checkpoint.{' The system does that where memory is short.' if number == signal.SIGKILL else ''}"
    )
    print(f"error: {message}", file=sys.stderr, flush=True)
    return _BY_A_SIGNAL + number


def _origin_of(failed: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Return the rank whose end brought the others down, and its failure.

    The agent dates a failure by the second in which it looked. Where a rank was killed and another found its connection
    closed before the agent looked, both ended at once: the killed one comes first. SIGTERM is what the agent itself sends.
    """
    first_rank, first = failed.get_first_failure()
    for rank, failure in failed.failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and failure.timestamp <= first.timestamp + 1:
            return rank, failure
    return first_rank, first


@contextmanager
def _signals_passed_on() -> Iterator[list[int]]:
    """Pass each signal of _PASSED_ON on to the ranks, and note it; without ranks it ends this process."""
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        ranks = _children()
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if not ranks:
            sys.exit(_BY_A_SIGNAL + number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    """List the processes that this one has started: the ranks."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


if __name__ == "__main__":
    sys.exit(run_torchrun(sys.argv[1:]))
