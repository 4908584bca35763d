import os
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from sockets import listeners_of

from pipeline.errors import InputError
from training.distributed.meeting import meet, own_folder
from training.distributed.settings import WorldSettings
from training.distributed.torchrun import Place, place_of, starts_ranks
from training.distributed.world import join

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_a/none_b/attempt_0/1/error.json",
}


@pytest.fixture(autouse=True)
def own_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "set by meet")


def test_a_place_is_what_torchrun_says() -> None:
    place = place_of(TORCHRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (3, 4, 1, 2)
    assert not place.is_one_host
    assert place_of({}) is None
    assert place_of(TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}).is_one_host
    by_hand = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE")}
    assert not place_of(by_hand).is_one_host, "nothing says that the others are here"


@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE"])
def test_every_start_of_the_ranks_meets_in_a_place_of_its_own(name: str) -> None:
    assert place_of(TORCHRUN).start == place_of(TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}).start
    assert place_of(TORCHRUN).start != place_of(TORCHRUN | {name: "/tmp/torchelastic_c/x/attempt_0/1/error.json"}).start


def test_ranks_are_started_once_and_never_against_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert [starts_ranks(ranks) for ranks in (1, 2)] == [False, True]
    with pytest.raises(InputError, match="ranks=0 is below 1"):
        starts_ranks(0)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert [starts_ranks(ranks) for ranks in (1, 4)] == [False, False]
    with pytest.raises(InputError, match="ranks=2 does not go with the 4 ranks of torchrun"):
        starts_ranks(2)


def test_ranks_that_never_come_are_named() -> None:
    here = Place(rank=1, size=4, local_rank=1, local_size=4, start="x")
    begin_s = time.monotonic()
    with pytest.raises(InputError, match=r"Ranks 0, 2, 3 of 4 did not come within world\.timeout_s=0\.2"):
        meet(here, 0.2)
    assert time.monotonic() - begin_s < 5


def test_ranks_of_other_hosts_that_never_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(InputError, match=r"Rank 1 of 2 did not come within world\.timeout_s=0\.2"):
        meet(Place(rank=0, size=2, local_rank=0, local_size=1, start="x"), 0.2)


def test_a_store_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = str(free_port())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(InputError, match=rf"Rank 1 of 2 did not reach the store of the others at 127\.0\.0\.1:{port}"):
        meet(Place(rank=1, size=2, local_rank=0, local_size=1, start="x"), 1.0)


def join_or_leave(leaves: str) -> Arrays:
    """Join as rank 0; as rank 1 come to the meeting and never join, because the process ends or hangs."""
    settings, error = WorldSettings(device="cpu", timeout_s=4), ""
    begin_s = time.monotonic()
    place = place_of()
    if place.rank == 1:
        meet(place, 30)
        time.sleep(12 if leaves == "hangs" else 0)
    else:
        try:
            with join(settings):
                pass
        except InputError as lost:
            error = str(lost)
    return {"error": np.array(error), "seconds": np.array(time.monotonic() - begin_s)}


@pytest.mark.parametrize("leaves", ["ends", "hangs"])
def test_a_rank_that_is_lost_while_it_joins_is_one_sentence_before_long(leaves: str, tmp_path: Path) -> None:
    rank = run_ranks(join_or_leave, 2, tmp_path / "ranks", leaves)[0]
    error = str(rank["error"])
    assert error.startswith("Another rank ended, or did not answer within world.timeout_s=4")
    assert ("rank 1 (process" in error) == (leaves == "ends")
    assert error.isascii(), "nothing of gloo's own text"
    assert rank["seconds"] < 20


def sum_of_ranks_by_tcp(port: int) -> Arrays:
    """Meet as ranks of two hosts do; return the sum of ones, and the addresses that this process listens on."""
    del os.environ["LOCAL_WORLD_SIZE"]
    os.environ["TORCHELASTIC_ERROR_FILE"] = f"/tmp/of_host_{os.environ['RANK']}/none/attempt_0/0/error.json"
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    with join(WorldSettings(device="cpu", timeout_s=60)) as world:
        listeners = listeners_of(os.getpid())
        return {"sum": world.sum(torch.ones(1)).numpy(), "listens": np.array([found.address for found in listeners])}


def test_rank_0_of_several_hosts_listens_on_the_address_that_it_was_given(tmp_path: Path) -> None:
    ranks = run_ranks(sum_of_ranks_by_tcp, 2, tmp_path / "ranks", free_port())
    assert [rank["sum"].tolist() for rank in ranks] == [[2], [2]]
    assert [rank["listens"].tolist() for rank in ranks] == [["127.0.0.1", "127.0.0.1"], ["127.0.0.1"]]


def test_nothing_is_left_of_a_meeting_and_old_files_go(tmp_path: Path) -> None:
    folder = own_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    old, new = folder / "old", folder / "new"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    own_folder()
    assert [path.name for path in folder.iterdir()] == ["new"]


@pytest.mark.parametrize("trap", ["a link", "open to others", "a file"])
def test_a_folder_that_another_user_could_write_to_is_refused(trap: str, tmp_path: Path) -> None:
    folder = own_folder()
    folder.rmdir()
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif trap == "a file":
        folder.touch(mode=0o700)
    else:
        folder.mkdir()
        folder.chmod(0o770)
    with pytest.raises(InputError, match="is not a folder that you alone may use; remove it, or set TMPDIR"):
        own_folder()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
