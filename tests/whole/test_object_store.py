"""A dataset on S3: raw logs from there, the dataset to there and into the trainer, by a real server on this host (moto)."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import xxhash
from event_log import ACTIONS, BOUNDARIES, EVENTS, IMPRESSIONS, write_jsonl, write_parquet
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs
from raw_log import random_log
from slow_reading import assert_same, epoch_reading, feed_of, merged, slow_reading
from tiny_dataset import write_tiny_dataset

from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError
from pipeline.preprocess import preprocess
from pipeline.storage import commit
from pipeline.storage.lock import dataset_lock
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.staged_file import StagedFile
from pipeline.storage.store import store_of

BUCKET = "entirespace"
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment that leads to an S3 of our own."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    moto.stop()


@pytest.fixture
def s3(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """boto3's client, with an empty bucket."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])
    return client


def upload(s3: Any, directory: Path, prefix: str) -> str:
    for path in directory.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(directory).as_posix()}")
    return f"s3://{BUCKET}/{prefix}"


def keys(s3: Any, prefix: str) -> list[str]:
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
    return [entry["Key"].removeprefix(f"{prefix}/") for entry in found if not entry["Key"].endswith("/")]


def job(raw: str, out: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.preprocess", f"source.path={raw}", f"out={out}", *SMALL, *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=550)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("spark")
def test_raw_logs_on_s3_become_the_same_dataset_on_s3_and_a_finished_one_is_left_alone(
    s3: Any, tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw = random_log(4, num_contexts=20, interleaved=True).write(tmp_path / "raw", num_parts=2)
    (raw / "sample_skeleton_train" / "part-001").unlink()
    address = upload(s3, raw, "raw")
    preprocess(preprocess_settings(raw, tmp_path / "out", *SMALL))
    out = f"s3://{BUCKET}/deep/out"
    remote = job(address, out, "source.split_bytes=3000")
    assert remote.returncode == 0, remote.stderr
    assert "not locked" not in remote.stderr
    manifest = load_manifest(out)
    assert manifest.to_json() == (tmp_path / "out" / "manifest.json").read_text()
    named = commit.files_named(manifest)
    assert any(path.startswith("quarantine/reread-") for path in named)
    for path in named:
        content = s3.get_object(Bucket=BUCKET, Key=f"deep/out/{path}")["Body"].read()
        assert content == (tmp_path / "out" / path).read_bytes()
    assert sorted(keys(s3, "deep/out")) == sorted([*named, "manifest.json", "audit.json", "audit.html", "run.json"])
    again = job(address, out)
    assert (again.returncode, "already there" in again.stdout) == (0, True), again.stderr


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.acceptance
def test_an_event_log_becomes_a_dataset_on_s3_by_a_shared_directory_that_is_empty_again_afterwards(
    s3: Any, tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    write_parquet(tmp_path / "raw", "impressions/dt=1", IMPRESSIONS)
    write_jsonl(tmp_path / "raw", "actions", ACTIONS)
    raw = upload(s3, tmp_path / "raw", "raw events")
    out = f"s3://{BUCKET}/events"
    given = [*EVENTS, BOUNDARIES, "source.events.actions.format=jsonl"]
    with pytest.raises(InputError, match=r"out=s3://entirespace/events is an address.*staging=DIRECTORY"):
        preprocess(preprocess_settings(tmp_path / "raw", out, *given))  # type: ignore[arg-type]
    done = job(raw.replace(" ", "%20"), out, *given, f"staging={tmp_path}/shared")
    assert done.returncode == 0, done.stderr
    assert load_manifest(out).totals["train"]["impressions"] == 4
    assert load_manifest(out).sources[0].name == "impressions/dt=1/0.parquet"
    assert not any((tmp_path / "shared").iterdir())


def test_the_feed_reads_a_dataset_on_s3_and_names_a_shard_that_changed(s3: Any, tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path / "tiny")
    address = upload(s3, tmp_path / "tiny", "tiny")
    assert load_manifest(address).to_json() == manifest.to_json()
    feed = feed_of(address, manifest, verify="checksum")
    assert_same(merged(epoch_reading(feed)), slow_reading(tmp_path / "tiny", manifest))
    victim = manifest.files_of("train")[0].path
    s3.put_object(Bucket=BUCKET, Key=f"tiny/{victim}", Body=b"short")
    broken = feed_of(address, manifest)
    with pytest.raises(InputError, match=f"{victim} has 5 bytes where the manifest says"):
        list(broken.batches(0, 0))


def test_a_second_job_on_a_prefix_is_refused_until_its_holder_is_gone(s3: Any, capsys: Any) -> None:
    store = store_of(f"s3://{BUCKET}/locked")
    with (
        dataset_lock(store),
        pytest.raises(InputError, match=f"being written by process {os.getpid()} on"),
        dataset_lock(store),
    ):
        pass
    assert keys(s3, "locked") == []
    for holder, message in (
        ({"host": "elsewhere", "pid": 1, "time": "noon"}, r"process 1 on elsewhere since noon.*remove s3://entirespace/locked/_lock"),
        ({"host": socket.gethostname(), "pid": os.getpid(), "time": "noon"}, "wait for it"),
    ):  # fmt: skip
        s3.put_object(Bucket=BUCKET, Key="locked/_lock", Body=json.dumps(holder).encode())
        with pytest.raises(InputError, match=message), dataset_lock(store):
            pass
    dead = subprocess.Popen(["true"])
    dead.wait()
    s3.put_object(Bucket=BUCKET, Key="locked/_lock", Body=json.dumps(holder | {"pid": dead.pid}).encode())
    with dataset_lock(store):
        assert "taking over s3://entirespace/locked/_lock" in capsys.readouterr().err
    assert keys(s3, "locked") == []


def test_a_bucket_that_is_not_there_and_an_address_with_a_query_are_said_in_one_sentence(s3: Any) -> None:
    with pytest.raises(InputError, match=r"out=s3://nowhere/x cannot be locked .*NoSuchBucket"), dataset_lock(store_of("s3://nowhere/x")):  # fmt: skip
        pass
    with pytest.raises(InputError, match=r"out=s3://nowhere/x cannot be written .*AWS_ENDPOINT_URL"):
        store_of("s3://nowhere/x").put("manifest.json", b"{}")
    with pytest.raises(InputError, match=r"data=s3://entirespace/none has no manifest.json|does not exist"):
        load_manifest("s3://entirespace/none")
    with pytest.raises(InputError, match="has a query"):
        store_of("s3://entirespace/x?region=eu-west-1")


def test_a_sweep_on_s3_takes_our_old_unnamed_files_and_nothing_else(s3: Any) -> None:
    store = store_of(f"s3://{BUCKET}/swept")
    ours, users = f"train/part-00000-{'0' * 16}.parquet", "train/notes.parquet"
    for name in (ours, users, "_staging/dead/x.npy", "_superseded/1.json"):
        store.put(name, manifest_of().to_json().encode())
    assert sorted(commit.unnamed_files(store, grace_hours=1)) == ["_superseded/1.json"]
    commit.remove_unnamed_files(store, grace_hours=0)
    assert keys(s3, "swept") == [users]


def manifest_of() -> Manifest:
    return Manifest({}, "", (), (), {}, (), {}, {})


def test_a_file_system_that_shows_files_as_they_grow_gets_them_by_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore("hdfs://host/data")
    monkeypatch.setattr("pipeline.object_files.open_location", lambda location: (pafs.LocalFileSystem(), str(tmp_path)))
    store.put("manifest.json", b"first")
    store.put("manifest.json", b"second")
    assert store.read("manifest.json") == b"second"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]
    staged = tmp_path / "staged"
    staged.write_bytes(b"rows")
    (tmp_path / "train").mkdir()
    digest = xxhash.xxh3_64_hexdigest(b"rows")
    sealed = store.seal(StagedFile(str(staged), 4, digest), f"train/part-00000-{digest}.parquet")
    assert store.read(store.install(sealed)) == b"rows"
    assert not staged.exists()
