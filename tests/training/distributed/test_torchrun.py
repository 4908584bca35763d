from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pipeline.errors import InputError
from training.distributed.torchrun import note_error, rank_of_process, starts_ranks

TWO_HOSTS = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "one",
    "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "3",
}  # fmt: skip


def test_what_torchrun_prints_last_is_the_error_that_was_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    note_error('error: out="ü" is wrong; give another.')
    failure = ProcessFailure(local_rank=0, pid=7, exitcode=2, error_file=str(path))
    lines = str(ChildFailedError("jobs.train", {0: failure})).splitlines()
    assert 'error: out="ü" is wrong; give another.' in [line for line in lines if line.strip("= ")][-1]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "none" / "error.json"))
    note_error("a folder that is gone is no further error")
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    note_error("without torchrun nothing is written")
    assert [one.name for one in tmp_path.iterdir()] == ["error.json"]


def test_restarts_by_torchrun_are_refused_across_hosts_and_taken_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TWO_HOSTS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"--max-restarts=3 restarts the ranks of several hosts .* --max-restarts=0"):
        starts_ranks(1)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert not starts_ranks(1)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not starts_ranks(1)


@pytest.mark.parametrize(("text", "rank"), [("0", 0), ("13", 13), ("", 0), ("x", 0)])
def test_the_rank_of_a_process_is_a_number_whatever_the_variable_holds(
    text: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", text)
    assert rank_of_process() == rank


@pytest.mark.parametrize(
    ("rank", "local_size", "waits"),
    [(0, 4, False), (3, 4, True), (0, 2, True), (1, 2, True), (2, 2, False), (3, 2, False)],
)
def test_rank_0_prints_before_its_host_ends_and_the_first_host_ends_last(
    rank: int, local_size: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        TWO_HOSTS | {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": str(local_size)}
    ).items():
        monkeypatch.setenv(name, value)
    assert (note_error("error: it is wrong") > 0) == waits
