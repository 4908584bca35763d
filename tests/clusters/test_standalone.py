"""A real standalone cluster on two hosts (network namespaces): code from a zip, the external shuffle service, every loss."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_log import random_log

from benchmarks.network_hosts import TwoHosts
from benchmarks.standalone import ROOT, SPARK_HOME, Standalone, python_workers, without_checkout
from pipeline.config.preprocess import PreprocessSettings
from pipeline.preprocess import preprocess

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")
HASTY = {
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.executorIdleTimeout": "5s",
    "spark.speculation": "true",
    "spark.speculation.task.duration.threshold": "5s",
}
SHUFFLE_SERVICE = {"spark.shuffle.service.enabled": "true", "spark.dynamicAllocation.shuffleTracking.enabled": "false"}
SHUFFLE_TRACKING = {"spark.dynamicAllocation.shuffleTracking.enabled": "true"}


@pytest.mark.usefixtures("spark")
def test_preprocessing_and_scoring_from_a_zip_outlive_a_stuck_task_a_killed_executor_and_a_killed_worker(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw = random_log(4, num_contexts=40, interleaved=True).write(tmp_path / "raw")
    splits = "source.split_bytes=30000"
    preprocess(preprocess_settings(raw, tmp_path / "expected", *SMALL, splits))
    zipped = ["-c", str(tmp_path / "code.zip"), "pipeline", "training", "jobs", "conf"]
    subprocess.run([sys.executable, "-m", "zipfile", *zipped], cwd=ROOT, check=True)
    for name in ("preprocess.py", "score.py"):
        shutil.copy(ROOT / "jobs" / name, tmp_path / name)
    out, events = tmp_path / "out", tmp_path / "events"
    events.mkdir()
    with (
        TwoHosts(is_fast=True) as hosts,
        Standalone(tmp_path / "cluster", hosts=hosts, worker_conf={"spark.shuffle.service.enabled": "true"}) as cluster,
    ):
        words = [f"source.path={raw}", f"out={out}", *SMALL, splits]
        job = submit(cluster, tmp_path, "preprocess.py", words, HASTY | SHUFFLE_SERVICE)
        stuck = stop_a_worker(job, cluster)
        await_files(job, out)
        os.kill(cluster.executors()[-1], signal.SIGKILL)
        cluster.kill_worker(1)
        cluster.start_worker(1)
        assert ended(job) == 0, said(tmp_path)
        assert (out / "manifest.json").read_bytes() == (tmp_path / "expected" / "manifest.json").read_bytes()
        assert not (out / "_staging").exists()
        happened = list(events_of(events))
        assert any(event["Event"] == "SparkListenerExecutorRemoved" for event in happened)
        starts = [event["Task Info"] for event in happened if event["Event"] == "SparkListenerTaskStart"]
        assert any(start["Speculative"] for start in starts), f"nobody ran again what worker {stuck} was stuck with"
        properties = [
            event["Spark Properties"] for event in happened if event["Event"] == "SparkListenerEnvironmentUpdate"
        ]
        assert not any("spark.executorEnv.PYTHONPATH" in found for found in properties)
        assert ["spark.shuffle.service.enabled", "true"] in [list(pair) for pair in pairs_of(properties[0])]

        run, scores = tmp_path / "run", tmp_path / "scores"
        train = [
            "jobs.train",
            f"data={out}",
            f"out={run}",
            "plan.batch_size=50",
            "plan.lanes=2",
            "model.towers.hidden=[8]",
        ]
        run_here(tmp_path, *train)
        run_here(tmp_path, "jobs.score", f"run={run}", f"source.path={raw}", f"out={tmp_path}/expected-scores", splits)
        words = [f"run={run}", f"source.path={raw}", f"out={scores}", splits]
        job = submit(cluster, tmp_path, "score.py", words, HASTY | SHUFFLE_TRACKING)
        await_workers(job, cluster)
        os.kill(cluster.executors()[-1], signal.SIGKILL)
        assert ended(job) == 0, said(tmp_path)
    wanted = json.loads((tmp_path / "expected-scores" / "scores.json").read_text())
    found = json.loads((scores / "scores.json").read_text())
    for key in ("totals", "sources", "settings", "outputs", "audit"):
        assert found[key] == wanted[key], key
    assert [one["xxh3"] for one in found["files"]] == [one["xxh3"] for one in wanted["files"]]


def submit(
    cluster: Standalone, folder: Path, script: str, words: list[str], conf: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a job behind spark-submit on the first host, with an event log."""
    logged = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": f"file:{folder / 'events'}", "spark.eventLog.compress": "false"}  # fmt: skip
    given = [f"--conf={name}={value}" for name, value in cluster.conf(conf | logged).items()]
    command = [
        str(SPARK_HOME / "bin/spark-submit"),
        "--master",
        cluster.master,
        "--py-files",
        "code.zip",
        *given,
        script,
        *words,
    ]
    environment = without_checkout() | {"SPARK_LOCAL_IP": cluster.addresses[0], "OMP_NUM_THREADS": "1"}
    with (folder / "said").open("wb") as output:
        return subprocess.Popen(cluster.within(command), cwd=folder, env=environment, stdout=output, stderr=output)


def said(folder: Path) -> str:
    return (folder / "said").read_text(errors="replace")[-3000:]


def ended(job: "subprocess.Popen[bytes]") -> int:
    try:
        return job.wait(timeout=400)
    finally:
        job.kill()


def run_here(folder: Path, *command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def stop_a_worker(job: "subprocess.Popen[bytes]", cluster: Standalone) -> int:
    """Freeze the first process that runs Python for a task: whatever it is given waits for ever."""
    worker = await_workers(job, cluster)
    os.kill(worker, signal.SIGSTOP)
    return worker


def await_workers(job: "subprocess.Popen[bytes]", cluster: Standalone) -> int:
    """Wait for a process that runs Python for a task."""
    while True:
        for executor in cluster.executors():
            for worker in python_workers(executor)[:1]:
                return worker
        assert job.poll() is None, said(cluster.directory.parent)
        time.sleep(0.3)


def await_files(job: "subprocess.Popen[bytes]", out: Path) -> None:
    """Wait until files are being written."""
    while not any((out / "_staging").glob("*/*-*")):
        assert job.poll() is None, said(out.parent)
        time.sleep(0.05)


def pairs_of(properties: Any) -> list[Any]:
    return list(properties.items()) if isinstance(properties, dict) else list(properties)


def events_of(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.rglob("events_*")):
        for line in path.read_text().splitlines():
            yield json.loads(line)


def test_the_history_server_shows_a_job_by_its_event_log(tmp_path: Path) -> None:
    """Run a job on a local master with the settings of docs/operations.md, then ask a history server."""
    raw = random_log(2, num_contexts=10).write(tmp_path / "raw")
    events = tmp_path / "events"
    events.mkdir()
    conf = f"+spark.conf={{spark.eventLog.enabled: true, spark.eventLog.dir: 'file:{events}'}}"
    run_here(tmp_path, "jobs.preprocess", f"source.path={raw}", f"out={tmp_path}/out", *SMALL, conf)
    with Standalone(tmp_path / "cluster", num_workers=0) as cluster:
        applications = cluster.history(events)
    assert [one["name"] for one in applications] == ["entirespace preprocess"]
    assert applications[0]["attempts"][0]["completed"]
