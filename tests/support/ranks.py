"""Run a function on several ranks, each a process of its own that meets the others as under torchrun on one host.

A fork server imports torch and TorchRec once (seconds) and forks the ranks of every test from there.
"""

import multiprocessing
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["training.run.trainer"])
TIMEOUT_S = 120

Arrays = dict[str, np.ndarray]


def run_ranks(function: Callable[..., Arrays], num_ranks: int, folder: Path, *args: Any) -> list[Arrays]:
    """Run `function(*args)` on `num_ranks` ranks; return its results by rank. `folder` is for their files."""
    folder.mkdir(parents=True, exist_ok=True)
    start = str(uuid.uuid4())
    processes = [
        CONTEXT.Process(target=_rank, args=(function, rank, num_ranks, start, folder, args))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, f"{len(alive)} of {num_ranks} ranks hang"
    statuses = [process.exitcode for process in processes]
    assert statuses == [0] * num_ranks, f"exit statuses {statuses}"
    return [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(num_ranks)]


def _rank(
    function: Callable[..., Arrays], rank: int, num_ranks: int, start: str, folder: Path, args: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(num_ranks), "TORCHELASTIC_RUN_ID": start}
    np.savez(folder / f"rank-{rank}.npz", **function(*args))
