import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import CONTEXT, run_ranks

from pipeline.errors import InputError
from training.distributed import world
from training.distributed.meeting import Meeting
from training.distributed.settings import WorldSettings
from training.distributed.torchrun import speaks
from training.distributed.tower_gradients import data_parallel
from training.distributed.world import join

CPU = WorldSettings(device="cpu", timeout_s=30)


def test_without_torchrun_a_process_is_a_world_of_one_and_leaves_no_group_behind() -> None:
    for _ in range(2):
        with join(CPU) as world:
            assert (world.rank, world.size, world.device.type) == (0, 1, "cpu")
            assert world.sum(torch.ones(2)).tolist() == [1, 1]
            assert world.broadcast(5) == 5
            assert world.gather([1, 2]) == [[1, 2]]
            world.agree(None)
            with pytest.raises(InputError, match="mine"):
                world.agree(InputError("mine"))
        assert not torch.distributed.is_initialized()


def agreeing(failing_ranks: list[int]) -> dict[str, np.ndarray]:
    with join(CPU) as world:
        told = ""
        try:
            world.agree(InputError(f"rank {world.rank}: ünreadable") if world.rank in failing_ranks else None)
        except InputError as error:
            told = str(error)
        numbers = [world.rank, world.size, world.broadcast(7 + world.rank), int(world.sum(torch.ones(1)).item())]
        return {"told": np.array(told), "numbers": np.array(numbers), "table": np.array(world.gather([world.rank, 9]))}


def test_the_first_failing_ranks_error_is_raised_on_every_rank(tmp_path: Path) -> None:
    ranks = run_ranks(agreeing, 3, tmp_path, [2, 1])
    assert [str(rank["told"]) for rank in ranks] == ["rank 1: ünreadable"] * 3
    assert [rank["numbers"].tolist() for rank in ranks] == [[0, 3, 7, 3], [1, 3, 7, 3], [2, 3, 7, 3]]
    assert [rank["table"].tolist() for rank in ranks] == [[[0, 9], [1, 9], [2, 9]]] * 3


def beside_a_rank_that(is_silent: bool) -> dict[str, np.ndarray]:
    """What rank 0 says of rank 1, which leaves without its part of a sum, or is silent for longer than the timeout."""
    timeout_s = 6.0
    error = ""
    try:
        with join(WorldSettings(device="cpu", timeout_s=timeout_s)) as world:
            world.barrier()
            if world.rank == 0:
                world.sum(torch.ones(1))
            elif is_silent:
                time.sleep(timeout_s + 2)
    except InputError as lost:
        error = str(lost)
    return {"error": np.array(error)}


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_rank_that_is_lost_or_silent_is_told_from_other_errors_by_the_words_of_gloo(
    tmp_path: Path, is_silent: bool
) -> None:
    """Gloo's RuntimeErrors have no type of their own; new words in a new torch would let a traceback through."""
    error = str(run_ranks(beside_a_rank_that, 2, tmp_path, is_silent)[0]["error"])
    assert error.startswith("Another rank ended, or did not answer within world.timeout_s=6")
    assert "run the same command again: it resumes from the last complete checkpoint" in error


def threads_of_a_rank(given: str) -> dict[str, np.ndarray]:
    os.environ.pop("OMP_NUM_THREADS", None)
    if given:
        os.environ["OMP_NUM_THREADS"] = given
    before = torch.get_num_threads()
    with join(CPU):
        return {"threads": np.array([before, torch.get_num_threads()])}


def test_the_ranks_of_a_host_divide_its_cores_unless_they_are_told_how_many_threads_to_take(tmp_path: Path) -> None:
    num_ranks = 2
    for rank in run_ranks(threads_of_a_rank, num_ranks, tmp_path / "free", ""):
        assert rank["threads"][1] == max(1, len(os.sched_getaffinity(0)) // num_ranks)
    for rank in run_ranks(threads_of_a_rank, num_ranks, tmp_path / "told", "3"):
        assert rank["threads"][1] == rank["threads"][0]


def hang_while_joining() -> None:
    world._LATE_S = 0.0
    with world._deadline(0.2, Meeting(store=None)):
        time.sleep(60)


def test_a_rank_that_hangs_in_gloo_ends_by_itself() -> None:
    process = CONTEXT.Process(target=hang_while_joining)
    process.start()
    process.join(30)
    assert process.exitcode == world.EXIT_LOST


def test_another_runtime_error_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="mine"), join(CPU):
        raise RuntimeError("mine")


def towers_outlive_their_group() -> dict[str, np.ndarray]:
    """Rank 0 leaves while its part of a sum is on its way: gloo's thread frees the tensor a second later, for which it
    needs Python's lock."""
    with join(CPU) as world:
        towers = data_parallel(torch.nn.Linear(3, 1), world)
        world.barrier()
        if world.rank == 1:
            time.sleep(1)
        world.start_sum(torch.zeros(10))
    del towers
    return {"left": np.array(True)}


def test_a_process_goes_on_though_its_towers_outlive_the_group_of_their_ddp(tmp_path: Path) -> None:
    """Without `_LAST_GROUP`, DDP's reducer destroys the group while it holds Python's lock: `run_ranks` finds ranks that
    hang."""
    run_ranks(towers_outlive_their_group, 2, tmp_path)


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert speaks()
    monkeypatch.setitem(os.environ, "RANK", "1")
    assert not speaks()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"world\.device=cuda.*world\.device=cpu"), join(WorldSettings("cuda")):
        pass
    with pytest.raises(InputError, match="not one of auto, cpu, cuda"), join(WorldSettings("tpu")):
        pass
