"""A real standalone cluster: code from a zip, executors that come and go, a stuck worker, a killed executor."""

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

from benchmarks.standalone import ROOT, SPARK_HOME, Standalone, python_workers, without_checkout
from pipeline.config.preprocess import PreprocessSettings
from pipeline.preprocess import preprocess

SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")
HASTY = {
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    "spark.dynamicAllocation.executorIdleTimeout": "5s",
    "spark.speculation": "true",
    "spark.speculation.task.duration.threshold": "5s",
}


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("spark")
def test_a_job_from_a_zip_outlives_a_stuck_worker_and_a_killed_executor_and_gives_the_same_dataset(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw = random_log(4, num_contexts=40, interleaved=True).write(tmp_path / "raw")
    splits = "source.split_bytes=30000"
    preprocess(preprocess_settings(raw, tmp_path / "expected", *SMALL, splits))
    subprocess.run([sys.executable, "-m", "zipfile", "-c", str(tmp_path / "code.zip"), "pipeline", "jobs", "conf"], cwd=ROOT, check=True)  # fmt: skip
    shutil.copy(ROOT / "jobs/preprocess.py", tmp_path / "preprocess.py")
    out, events = tmp_path / "out", tmp_path / "events"
    events.mkdir()
    with Standalone(tmp_path / "cluster") as cluster:
        logged = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": f"file:{events}", "spark.eventLog.compress": "false"}  # fmt: skip
        conf = [f"--conf={name}={value}" for name, value in cluster.conf(HASTY | logged).items()]
        command = [str(SPARK_HOME / "bin/spark-submit"), "--master", cluster.master, "--py-files", "code.zip", *conf]
        command += ["preprocess.py", f"source.path={raw}", f"out={out}", *SMALL, splits]
        job = subprocess.Popen(command, cwd=tmp_path, env=without_checkout(), stderr=subprocess.PIPE, text=True)
        stuck = stop_a_worker(job, cluster)
        kill_an_executor(job, cluster, out)
        _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert (out / "manifest.json").read_bytes() == (tmp_path / "expected" / "manifest.json").read_bytes()
    assert not (out / "_staging").exists()
    happened = list(events_of(events))
    assert any(event["Event"] == "SparkListenerExecutorRemoved" for event in happened)
    starts = [event["Task Info"] for event in happened if event["Event"] == "SparkListenerTaskStart"]
    assert any(start["Speculative"] for start in starts), f"nobody ran again what worker {stuck} was stuck with"
    paths = {str(value) for event in happened if event["Event"] == "SparkListenerEnvironmentUpdate" for value in event["Spark Properties"]}  # fmt: skip
    assert not any("spark.executorEnv.PYTHONPATH" in path for path in paths)


def stop_a_worker(job: "subprocess.Popen[str]", cluster: Standalone) -> int:
    """Freeze the first process that runs Python for a task: whatever it is given waits for ever."""
    while True:
        for executor in cluster.executors():
            for worker in python_workers(executor)[:1]:
                os.kill(worker, signal.SIGSTOP)
                return worker
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.3)


def kill_an_executor(job: "subprocess.Popen[str]", cluster: Standalone, out: Path) -> None:
    """End an executor while files are being written."""
    while not any((out / "_staging").glob("*/*-*")):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    os.kill(cluster.executors()[-1], signal.SIGKILL)


def events_of(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.rglob("events_*")):
        for line in path.read_text().splitlines():
            yield json.loads(line)
