"""A run on S3, by a real server on this host (moto) behind a proxy that fails as stores do: no bit differs, nothing is half there."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from faulty_s3 import BUCKET, FaultyS3, Request, at_random, every, lead_to, none
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

from pipeline import object_files, object_lock
from pipeline.errors import InputError
from pipeline.object_files import ObjectFiles, check_address
from pipeline.object_lock import claimed
from pipeline.scratch import scratch_folder
from training.checkpoint.files import find_newest
from training.checkpoint.remote_run import RemoteRun, local_run
from training.checkpoint.settings import CheckpointSettings
from training.distributed.world import join
from training.export.folder import export_run
from training.export.settings import ExportSettings
from training.run.evaluate import evaluate_split
from training.run.evaluated_run import evaluated_run, local_result
from training.run.settings import TrainSettings, ValidationSettings
from training.run.trainer import Trainer
from training.serving.open_run import open_scorer

KEY, SECRET = "AKIAPLANTEDKEY", "planted-secret-of-s3"


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyS3]:
    with FaultyS3(KEY, SECRET) as opened:
        yield opened


@pytest.fixture
def s3(store: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> FaultyS3:
    """The store, empty and well, and hasty repetitions."""
    lead_to(store, monkeypatch)
    monkeypatch.setattr(object_files, "PAUSES_S", [0.01] * 7)
    store.faults = none
    store.clear()
    store.seen.clear()
    return store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "data"
    write_tiny_dataset(path, num_contexts=120)
    return path


def settings_of(data: Path, out: str | Path, epochs: int = 3) -> TrainSettings:
    settings = tiny_settings(data, Path("unused"), batch_size=64, dropout=0.2, epochs=epochs)
    return replace(
        settings,
        out=str(out),
        checkpoint=CheckpointSettings(every_steps=3, keep=2),
        validation=ValidationSettings(every_steps=4),
    )


def fit(settings: TrainSettings, stop_at: int | None = None) -> int:
    """Train; a SIGTERM comes at the step `stop_at`."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        taken = trainer.step

        def step(rank_batch: Any) -> Any:
            if stop_at is not None and trainer.steps_done == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return taken(rank_batch)

        trainer.step = step  # type: ignore[method-assign]
        return trainer.fit()


def checkpoints(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.startswith("checkpoints/")}


def local_files(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def remote_files(s3: FaultyS3, prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{prefix}/"): s3.content(name) for name in s3.names(f"{prefix}/")}


def losses(log: bytes) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in log.splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def assert_complete(s3: FaultyS3, prefix: str) -> None:
    """Check that every checkpoint.json names files that are there, with their sizes, and that there are no other checkpoints."""
    files = checkpoints(remote_files(s3, prefix))
    for name, content in files.items():
        folder, _, last = name.rpartition("/")
        assert f"{folder}/checkpoint.json" in files, name
        if last == "checkpoint.json":
            for part, entry in json.loads(content)["files"].items():
                assert len(files[f"{folder}/{part}"]) == entry["bytes"]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder, that nothing disturbed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert fit(settings_of(data, run)) == 0
    return run


def test_a_run_on_s3_that_is_stopped_and_resumed_has_the_checkpoints_of_one_in_a_folder_byte_for_byte(
    s3: FaultyS3, data: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = s3.upload(data, "data"), f"s3://{BUCKET}/deep/run"
    settings = replace(settings_of(data, address[1]), data=address[0])
    assert fit(settings, stop_at=5) == os.EX_TEMPFAIL
    assert s3.content("deep/run/REQUEUE")
    assert f"{address[1]} is stopped and saved after step 6" in capsys.readouterr().err
    assert_complete(s3, "deep/run")
    assert fit(settings) == 0
    found, wanted = remote_files(s3, "deep/run"), local_files(trained)
    assert checkpoints(found) == checkpoints(wanted)
    assert losses(found["log.jsonl"]) == losses(wanted["log.jsonl"])
    named = {name for name in wanted if not name.startswith(("tensorboard/", ".lock"))}
    assert {name for name in found if not name.startswith("tensorboard/")} == named, "no lock, no REQUEUE is left"
    assert sum(name.startswith("tensorboard/") for name in found) == 2
    said = "".join(capsys.readouterr())
    assert f"python -m jobs.evaluate run={address[1]} split=test" in said
    assert str(scratch_folder()) not in said
    assert fit(settings) == 0
    assert f"{address[1]} has its 3 epochs already" in "".join(capsys.readouterr())
    with pytest.raises(
        InputError, match=r"out=s3://entirespace/deep/run was started with seed=1 and this command says 2"
    ):
        fit(replace(settings, seed=2))


@pytest.mark.cluster
def test_a_store_that_fails_loses_no_bit_and_shows_no_half_of_a_checkpoint(
    s3: FaultyS3, data: Path, trained: Path
) -> None:
    s3.faults = at_random(3, 0.25, "500", "503", "lost", "cut", "500")
    assert fit(settings_of(data, f"s3://{BUCKET}/bad/run"), stop_at=4) == os.EX_TEMPFAIL
    assert fit(settings_of(data, f"s3://{BUCKET}/bad/run")) == 0
    s3.faults = none
    assert checkpoints(remote_files(s3, "bad/run")) == checkpoints(local_files(trained))
    assert min(s3.seen[kind] for kind in ("500", "503", "lost", "cut")) >= 2, s3.seen
    assert_complete(s3, "bad/run")


@pytest.mark.cluster
def test_a_slow_answer_is_waited_for(s3: FaultyS3, tmp_path: Path) -> None:
    files = ObjectFiles(f"s3://{BUCKET}/slow")
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    s3.faults = every(2, "slow", methods="GET PUT")
    files.upload(tmp_path / "file", "a/file")
    files.download("a/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert s3.seen["slow"] >= 1


@pytest.mark.cluster
def test_an_error_that_lasts_ends_the_run_in_one_sentence_and_the_next_start_resumes(
    s3: FaultyS3, data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(data, f"s3://{BUCKET}/away/run")
    monkeypatch.setattr(object_files, "PAUSES_S", [])  # pyarrow's own patience is 7 s

    def refuse_the_second_checkpoint(request: Request) -> str | None:
        return "503" if "step-00000006" in request.path and request.method in ("PUT", "POST") else None

    s3.faults = refuse_the_second_checkpoint
    with pytest.raises(InputError, match=r"The checkpoint s3://entirespace/away/run/checkpoints/step-00000006 cannot be written .*it resumes"):  # fmt: skip
        fit(settings)
    s3.faults = none
    assert [name for name in s3.names("away/run/checkpoints") if name.endswith("checkpoint.json")] == [
        "away/run/checkpoints/step-00000003/checkpoint.json",
        "away/run/checkpoints/step-00000004/checkpoint.json",
    ]
    assert fit(settings) == 0
    assert "resumes at step 4 of" in capsys.readouterr().err
    assert checkpoints(remote_files(s3, "away/run")) == checkpoints(local_files(trained))


@pytest.mark.cluster
def test_what_a_killed_run_left_is_no_checkpoint_and_a_damaged_one_is_skipped_and_named(
    s3: FaultyS3, data: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = s3.upload(trained, "run")
    newest, before = sorted((path.name for path in (trained / "checkpoints").iterdir()), reverse=True)[:2]
    s3.put("run/checkpoints/step-00000099/rank-00000.safetensors", b"half")
    assert local_run(address, "run", "newest").joinpath("checkpoints", newest, "checkpoint.json").exists()
    s3.put(f"run/checkpoints/{newest}/towers.safetensors", b"cut")
    settings = settings_of(data, address, epochs=4)
    assert fit(settings) == 0
    said = capsys.readouterr().err
    assert re.search(rf"towers.safetensors has 3 bytes where {address}/checkpoints/{newest}/checkpoint.json says", said)
    assert f"{address}/checkpoints/{newest}/checkpoint.json is renamed to checkpoint.json.damaged" in said
    assert f"resumes at step {int(before.removeprefix('step-'))} of" in said
    assert "run/checkpoints/step-00000099/rank-00000.safetensors" not in s3.names("run")
    assert_complete(s3, "run")


def test_an_evaluation_and_a_scorer_of_a_run_on_s3_are_those_of_the_folder(
    s3: FaultyS3, data: Path, trained: Path
) -> None:
    address = s3.upload(trained, "run")
    s3.faults = at_random(5, 0.1, "500", "503", "cut")
    settings = settings_of(data, trained)
    with join(settings.world) as world:
        here = evaluated_run(address, "run", world, "newest", "test")
        evaluate_split(here.folder, settings, "test", None, world)
        here.publish()
        evaluate_split(trained, settings, "test", None, world)
    found, wanted = remote_files(s3, "run"), local_files(trained)
    assert found["metrics.json"] == wanted["metrics.json"]
    part = "predictions/test/part-00000.parquet"
    assert pq.read_table(local_result(address, "test") / part).equals(pq.read_table(trained / part))
    assert found.keys() >= {"report.html", "metrics.test.json", part}
    first, second = (
        open_scorer(run).predict({"user_id": 5}, [{"item_id": 1}, {"item_id": 2}]) for run in (address, trained)
    )
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.cluster
def test_an_export_on_s3_is_one_when_its_last_file_is_there(s3: FaultyS3, data: Path, trained: Path) -> None:
    address = s3.upload(trained, "run")
    s3.faults = at_random(5, 0.1, "500", "503", "cut")
    out = f"s3://{BUCKET}/exports/one"
    s3.put("exports/one/model.pt2", b"of a job that was killed")
    export = ExportSettings(run=address, out=out, formats=["pt2"], data=str(data), check_impressions=50)
    assert list(export_run(export))[-1] == f"{out} is complete."
    assert json.loads(s3.content("exports/one/check.json"))
    assert len(s3.content("exports/one/model.pt2")) > 1000
    with pytest.raises(InputError, match="out=s3://entirespace/exports/one is there already"):
        list(export_run(export))
    s3.put("exports/two/notes.txt", b"a user's")
    with pytest.raises(InputError, match=r"has other files \(notes.txt\)"):
        list(export_run(replace(export, out=f"s3://{BUCKET}/exports/two")))


def test_figures_are_gone_while_the_files_of_a_result_are_replaced(s3: FaultyS3, tmp_path: Path) -> None:
    run = RemoteRun(f"s3://{BUCKET}/replaced", "run")
    for version in (b"1", b"2"):
        for name in ("predictions/test/part-00000.parquet", "metrics.test.json", "metrics.json"):
            (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (run.folder / name).write_bytes(version)
        os.utime(run.folder / "metrics.json", ns=(int(version), int(version)))
        s3.log.clear()
        run.publish()
        changes = [f"{one.method} {one.path.partition('?')[0]}" for one in s3.log if one.method in ("PUT", "DELETE")]
        put = [
            one.removeprefix(f"PUT /{BUCKET}/replaced/")
            for one in changes
            if one.startswith("PUT") and not one.endswith("/")
        ]
        assert put[0].startswith("predictions/")
        assert put[-2:] == ["metrics.json", "metrics.test.json"]
        if version == b"2":
            assert changes.index(f"DELETE /{BUCKET}/replaced/metrics.test.json") < changes.index(
                f"PUT /{BUCKET}/replaced/{put[0]}"
            )
    (run.folder / "metrics.json").unlink()
    run.publish()
    assert "replaced/metrics.json" not in s3.names("replaced")


def rank_of_two(settings: TrainSettings) -> Arrays:
    fit(settings)
    return {}


@pytest.mark.cluster
def test_two_ranks_share_one_copy_and_save_the_bytes_of_two_ranks_on_a_disk(
    s3: FaultyS3, data: Path, tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/two"
    for out in (str(tmp_path / "run"), address):
        run_ranks(rank_of_two, 2, tmp_path / "ranks", settings_of(data, out, epochs=1))
    assert checkpoints(remote_files(s3, "two")) == checkpoints(local_files(tmp_path / "run"))


def test_a_claim_is_refused_while_it_is_renewed_and_taken_over_when_it_is_not(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(object_lock, "_LEASE_S", 1.0)
    location = f"s3://{BUCKET}/claimed"
    refused = pytest.raises(InputError, match=f"out={location} is being trained already, by process {os.getpid()} on")
    with claimed(location, ".lock", "out"), refused, claimed(location, ".lock", "out"):
        pass
    assert s3.names("claimed") == []
    s3.put("claimed/.lock", json.dumps({"host": "elsewhere", "pid": 1, "time": "noon"}).encode())
    with claimed(location, ".lock", "out"):
        said = capsys.readouterr().err
        assert "taking over unless that renews it in 1 s" in said
        assert f"taking over {location}: process 1 on elsewhere since noon has ended" in said
    dead = subprocess.Popen(["true"])
    dead.wait()
    monkeypatch.setattr(object_lock, "_LEASE_S", 1000.0)  # nobody waits for it
    s3.put("claimed/.lock", json.dumps({"host": socket.gethostname(), "pid": dead.pid, "time": "noon"}).encode())
    with claimed(location, ".lock", "out"):
        assert "taking over unless" not in capsys.readouterr().err
    assert s3.names("claimed") == []


def test_a_claim_whose_answer_was_lost_is_ours_and_one_that_another_job_took_over_ends_this_one(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_lock, "_LEASE_S", 0.4)
    location = f"s3://{BUCKET}/lost"
    s3.faults = every(1, "lost", methods="PUT")
    threading.Timer(0.3, lambda: setattr(s3, "faults", none)).start()
    with claimed(location, ".lock", "out") as claim:
        assert json.loads(s3.content("lost/.lock"))["pid"] == os.getpid()
        claim.check()
        s3.put("lost/.lock", b"of another job")
        deadline_s = time.monotonic() + 10
        while not claim.is_lost and time.monotonic() < deadline_s:
            time.sleep(0.05)
        with pytest.raises(InputError, match=rf"{location}/.lock has been taken over by another job"):
            claim.check()
    assert s3.content("lost/.lock") == b"of another job", "a lock that is another job's is left alone"
    s3.faults = every(1, "412", methods="PUT")
    with pytest.raises(InputError, match="out=s3://entirespace/refused is just being taken by another job"), claimed(f"s3://{BUCKET}/refused", ".lock", "out"):  # fmt: skip
        pass


def test_a_commit_behind_a_long_silence_asks_the_store_whose_the_claim_is(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"s3://{BUCKET}/silent"
    with claimed(location, ".lock", "out") as claim:  # its thread renews it in 22 s
        monkeypatch.setattr(object_lock, "_LEASE_S", 0.2)
        time.sleep(0.2)
        claim.check()  # still ours, and renewed
        s3.put("silent/.lock", b"of another job")
        time.sleep(0.2)
        with pytest.raises(InputError, match=rf"{location}/.lock has been taken over by another job"):
            claim.check()
    assert s3.content("silent/.lock") == b"of another job"


@pytest.mark.cluster
def test_the_planted_key_is_in_no_file_and_no_line(
    s3: FaultyS3, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(data, f"s3://{BUCKET}/secret/run", epochs=1)
    s3.faults = at_random(2, 0.2, "500", "503")
    fit(settings)
    s3.faults = lambda request: "503" if "checkpoint" in request.path else None
    monkeypatch.setattr(object_files, "PAUSES_S", [0.01])
    with pytest.raises(InputError) as refused:
        fit(replace(settings, epochs=2))
    s3.faults = none
    said = "".join(capfd.readouterr()) + str(refused.value)
    assert "trying again" in said
    for planted in (KEY, SECRET):
        assert planted not in said
        for name in s3.names(""):
            assert planted.encode() not in s3.content(name), name
        for path in scratch_folder().rglob("*"):
            assert not path.is_file() or planted.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://KEY:SECRET@bucket/run", r"out=s3://\*\*\*@bucket/run has credentials"),
        ("s3://bucket/run?endpoint_override=x", "out=s3://bucket/run.endpoint_override=x has a query"),
    ],
)
def test_an_address_that_would_save_a_secret_is_refused(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        TrainSettings(data="D", out=address)
    assert "KEY:" not in str(refused.value)
    with pytest.raises(InputError, match=message):
        check_address("out", address)


def test_a_bucket_that_is_not_there_is_told_at_once(s3: FaultyS3, data: Path) -> None:
    with pytest.raises(InputError, match=r"out=s3://nowhere/run cannot be locked .*NoSuchBucket|NoSuchBucket"):
        fit(settings_of(data, "s3://nowhere/run"))
    with pytest.raises(InputError, match=r"run=s3://entirespace/none has no config.yaml|no training run is there"):
        open_scorer(f"s3://{BUCKET}/none")
    assert find_newest(Path("s3://entirespace/none"), print) is None
