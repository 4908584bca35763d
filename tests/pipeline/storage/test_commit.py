"""The commit: the same bytes however the job went, one job at a time, the earlier generation whole until the end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_log import random_log, small_log

from jobs.inspect import InspectSettings, run
from pipeline.audit.summary import audit_warnings
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from pipeline.preprocess import preprocess
from pipeline.storage.local_store import LocalStore
from pipeline.storage.lock import dataset_lock

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")

pytestmark = pytest.mark.usefixtures("spark")


def manifest_bytes(out: Path) -> bytes:
    return (out / "manifest.json").read_bytes()


def present_in(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*.parquet")}


def command(raw: Path, out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "jobs.preprocess", f"source.path={raw}", f"out={out}", *SMALL, *overrides]


def test_the_manifest_is_the_same_for_any_number_of_input_splits_cores_and_for_a_killed_and_rerun_job(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = random_log(4, num_contexts=40, interleaved=True).write(tmp_path / "raw")
    largest = max(path.stat().st_size for path in raw.iterdir())
    for name, splits in (("one", 1), ("two", 2), ("five", 5)):
        split_bytes = f"source.split_bytes={largest // splits + 1}"
        preprocess(preprocess_settings(raw, tmp_path / name, *SMALL, split_bytes))
    assert manifest_bytes(tmp_path / "one") == manifest_bytes(tmp_path / "two") == manifest_bytes(tmp_path / "five")

    killed = tmp_path / "killed"
    job = subprocess.Popen(command(raw, killed, "spark.master=local[1]"), stderr=subprocess.DEVNULL)
    while not (killed / "_staging").exists() or not any((killed / "_staging").rglob("*-*")):
        assert job.poll() is None, "the job ended before it could be killed"
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (killed / "manifest.json").exists()
    rerun = subprocess.run(command(raw, killed, "spark.master=local[1]"), capture_output=True, text=True, check=False)
    assert rerun.returncode == 0, rerun.stderr
    assert "taking over" in rerun.stderr
    assert manifest_bytes(killed) == manifest_bytes(tmp_path / "one")
    for file in load_manifest(killed).files:
        assert (killed / file.path).read_bytes() == (tmp_path / "one" / file.path).read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())


def test_a_finished_dataset_is_left_alone_and_overwriting_keeps_the_earlier_generation_readable(
    tmp_path: Path, preprocess_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = small_log().write(tmp_path / "raw"), tmp_path / "out"
    first = preprocess(preprocess_settings(raw, out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert preprocess(preprocess_settings(raw, out)) == first
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(InputError, match=r"made with other settings.*overwrite=true"):
        preprocess(preprocess_settings(raw, out, "seed=2"))
    (out / "train" / "notes.parquet").write_text("a file of the user's own")
    changes = ("rows.max_impressions=1", "rows.max_impressions=1 features.group=''")
    seconds = [preprocess(preprocess_settings(raw, out, *change.split(), "overwrite=true")) for change in changes]
    assert {file.path for manifest in (first, *seconds) for file in manifest.files} <= present_in(out)
    # The last one again finds nothing to do, but the grace period of the others over.
    preprocess(preprocess_settings(raw, out, *changes[-1].split(), "grace_hours=0"))
    seconds = seconds[-1:]
    present = present_in(out)
    for manifest in seconds:
        assert {file.path for file in manifest.files} <= present
    gone = {file.path for file in first.files} - {file.path for manifest in seconds for file in manifest.files}
    assert gone
    assert not gone & present
    assert "train/notes.parquet" in present


@pytest.mark.parametrize(("written", "named"), [(1, "audit.json in"), (3, "audit.json and run.json in")])
def test_a_job_that_is_killed_just_before_it_replaces_a_dataset_leaves_an_audit_that_readers_do_not_take_for_its_own(
    tmp_path: Path, preprocess_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    written: int, named: str,
) -> None:  # fmt: skip
    raw, out = small_log().write(tmp_path / "raw"), tmp_path / "out"
    first = preprocess(preprocess_settings(raw, out))
    run(InspectSettings(data=str(out), rows=0))
    assert "warning" not in capsys.readouterr().out
    put, names = LocalStore.put, iter(["audit.json", "audit.html", "run.json"][:written])

    def put_until_killed(store: LocalStore, name: str, content: bytes, mode: int | None = None) -> None:
        if name != next(names, None):
            raise KeyboardInterrupt
        put(store, name, content, mode)

    monkeypatch.setattr(LocalStore, "put", put_until_killed)
    with pytest.raises(KeyboardInterrupt):
        preprocess(preprocess_settings(raw, out, "rows.max_impressions=1", "overwrite=true"))
    monkeypatch.setattr(LocalStore, "put", put)
    assert manifest_bytes(out) == first.to_json().encode()
    assert preprocess(preprocess_settings(raw, out)) == first
    (sentence,) = audit_warnings(str(out))
    assert sentence.startswith(f"{named} {out} are not of this dataset but of a job that was to replace it")
    run(InspectSettings(data=str(out), rows=0))
    assert f"warning: {sentence}" in capsys.readouterr().out
    preprocess(preprocess_settings(raw, out, "rows.max_impressions=1", "overwrite=true"))
    assert audit_warnings(str(out)) == []
    assert load_manifest(out).xxh3 in (out / "audit.html").read_text()


def test_a_second_job_on_the_same_path_is_refused(tmp_path: Path, preprocess_settings: Settings) -> None:
    raw, out = small_log().write(tmp_path / "raw"), tmp_path / "out"
    with (
        dataset_lock(LocalStore(out)),
        pytest.raises(InputError, match=f"out={out} is being written by process {os.getpid()} on .* since "),
    ):
        preprocess(preprocess_settings(raw, out))
    assert not (out / "_lock").exists()
