"""Faults of jobs.preprocess: one sentence where it must stop, the same manifest afterwards, and never half a dataset.

`python -m benchmarks.preprocess_faults` is the long version, with the driver and executors killed.
"""

import json
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_log import random_log

from benchmarks.fault_support import Reader, remount, small_disk
from benchmarks.preprocess_faults import waste
from benchmarks.standalone import python_workers
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.preprocess import preprocess
from pipeline.storage.local_store import LocalStore

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_log(4, num_contexts=40, interleaved=True).write(tmp_path_factory.mktemp("faults") / "raw")


@pytest.fixture(scope="module")
def expected(raw: Path, preprocess_settings: Settings) -> str:
    """The manifest of the undisturbed run."""
    return preprocess(preprocess_settings(raw, raw.parent / "expected", *SMALL)).to_json()


def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing_and_with_more_room_the_job_succeeds(
    tmp_path: Path, raw: Path, expected: str, preprocess_settings: Settings
) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk, Reader(disk / "out") as reader:
        settings = preprocess_settings(raw, disk / "out", *SMALL)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make room there"):
            preprocess(settings)
        assert not reader.generations
        assert not (disk / "out/_staging").exists()
        remount(disk, "size=64m")
        assert preprocess(settings).to_json() == expected
        reader.look()
        assert (reader.generations, reader.faults) == ([expected], [])
        assert waste(disk / "out") == 0


def test_a_read_only_target_is_refused_before_spark_has_work_and_a_finished_dataset_on_it_is_left_alone(
    tmp_path: Path, raw: Path, expected: str, preprocess_settings: Settings
) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        settings = preprocess_settings(raw, disk / "out", *SMALL)
        remount(disk, "ro")
        with pytest.raises(InputError, match=r"out=.*/out cannot be written \(Read-only file system\)"):
            preprocess(settings)
        remount(disk, "rw")
        preprocess(settings)
        (disk / "out/_staging/dead").mkdir(parents=True)
        (disk / "out/_staging/dead/train-00000-1-1").touch()
        remount(disk, "ro")
        settings.grace_hours = 0
        assert preprocess(settings).to_json() == expected
        remount(disk, "rw")


def test_the_lock_of_another_host_is_respected_and_the_refusal_says_how_to_end_it(
    tmp_path: Path, raw: Path, preprocess_settings: Settings
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "_lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": "noon"}))
    with pytest.raises(InputError, match=r"written by process 1 on elsewhere since noon.*is gone, remove .*/out/_lock"):
        preprocess(preprocess_settings(raw, out, *SMALL))
    assert (out / "_lock").exists()


def test_a_killed_python_worker_costs_a_second_attempt_and_changes_nothing(
    tmp_path: Path, raw: Path, expected: str, preprocess_settings: Settings
) -> None:
    stop, killed = threading.Event(), []

    def kill() -> None:
        while not stop.wait(0.05) and not killed:
            # The write stage: its files are being made, so some worker is at work.
            if any((tmp_path / "out/_staging").glob("*/*-*")) and (workers := python_workers(os.getpid())):
                killed.append(random.choice(workers))
                os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with Reader(tmp_path / "out") as reader:
        found = preprocess(preprocess_settings(raw, tmp_path / "out", *SMALL, "rows.impressions_per_file=100"))
        stop.set()
    killer.join()
    assert killed
    undisturbed = preprocess(preprocess_settings(raw, tmp_path / "again", *SMALL, "rows.impressions_per_file=100"))
    assert found.to_json() == undisturbed.to_json()
    assert reader.faults == []


def test_a_worker_of_a_dead_run_finds_its_directory_gone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.begin("dead")
    path = store.scratch("dead") / "train-00000-1-1"
    store.begin("next")
    with pytest.raises(FileNotFoundError):
        path.open("xb")
    with pytest.raises(InputError, match="cannot be written"):
        store.save("dead", "rejects.npy", b"")
    assert [found.name for found in (tmp_path / "_staging").iterdir()] == ["next"]


def test_a_small_file_that_was_being_written_when_the_job_was_killed_is_gone_after_the_next(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.begin("dead")
    (tmp_path / "_staging/manifest.json-123").write_text("{")
    store.begin("next")
    store.put("manifest.json", b"{}")
    store.clear("next")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["manifest.json"]
