"""Every job from and to S3, by its command: a store that fails, jobs that are killed, and a planted key that nobody may find."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_s3 import BUCKET, FaultyS3, at_random, none
from raw_log import random_log

from benchmarks.standalone import ROOT, descendants

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]
KEY, SECRET = "AKIAPLANTEDKEY", "planted-secret-of-s3"
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")
TRAIN = (
    "plan.batch_size=32",
    "plan.lanes=2",
    "model.towers.hidden=[8]",
    "checkpoint.every_steps=2",
    "epochs=3",
    "world.timeout_s=60",
)


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    with FaultyS3(KEY, SECRET) as store:
        yield store


class Jobs:
    """Runs jobs, and keeps all that they say."""

    def __init__(self, s3: FaultyS3, folder: Path) -> None:
        self.folder, self.said = folder, ""
        (folder / "tmp").mkdir()
        self.environment = os.environ | s3.environment | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"),
            "ENTIRESPACE_LOG": "json", "ENTIRESPACE_METRICS": str(folder / "tmp"),
        }  # fmt: skip

    def start(self, *command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end(self, process: "subprocess.Popen[str]") -> int:
        self.said += (said := process.communicate(timeout=300)[0])
        assert "Traceback" not in said, said
        return process.returncode

    def run(self, *command: str) -> None:
        """Run a job until it is done: a store that fails may end it, and the same command goes on."""
        for _ in range(4):
            if self.end(self.start(*command)) == 0:
                return
        raise AssertionError(self.said[-3000:])


def files_of(s3: FaultyS3, prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{prefix}/"): s3.content(name) for name in s3.names(f"{prefix}/")}


def test_the_whole_chain_on_a_store_that_fails_makes_what_it_makes_in_folders(s3: FaultyS3, tmp_path: Path) -> None:
    raw = random_log(4, num_contexts=40).write(tmp_path / "raw")
    jobs, draw = Jobs(s3, tmp_path), random.Random(7)
    remote, local = f"s3://{BUCKET}", str(tmp_path / "local")
    raw_there = s3.upload(raw, "raw")
    jobs.run("jobs.preprocess", f"source.path={raw}", f"out={local}/dataset", *SMALL)
    jobs.run("jobs.train", f"data={local}/dataset", f"out={local}/run", "ranks=2", *TRAIN)
    jobs.run("jobs.evaluate", f"run={local}/run", "split=test")
    jobs.run("jobs.score", f"run={local}/run", f"source.path={raw}", f"out={local}/scores")

    s3.faults = at_random(11, 0.04, "500", "503", "lost", "cut", "slow")
    jobs.run("jobs.preprocess", f"source.path={raw_there}", f"out={remote}/dataset", *SMALL)
    train = ["jobs.train", f"data={remote}/dataset", f"out={remote}/run", "ranks=2", *TRAIN]
    for victim in ("launcher", "rank"):
        process = jobs.start(*train)
        checkpoints = len(s3.names("run/checkpoints"))
        while process.poll() is None and len(s3.names("run/checkpoints")) <= checkpoints + draw.randrange(6):
            time.sleep(0.02)
        below = descendants(process.pid)
        for pid in [process.pid, *below] if victim == "launcher" else below[-1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        jobs.end(process)
        for name in s3.names("run/checkpoints"):  # nothing is half-visible
            if name.endswith("checkpoint.json"):
                for part, entry in json.loads(s3.content(name))["files"].items():
                    assert len(s3.content(f"{name.rpartition('/')[0]}/{part}")) == entry["bytes"]
    jobs.run(*train)
    jobs.run("jobs.evaluate", f"run={remote}/run", "split=test", "ranks=2")
    jobs.run("jobs.score", f"run={remote}/run", f"source.path={raw_there}", f"out={remote}/scores")
    jobs.run("jobs.export", f"run={remote}/run", f"out={remote}/export", "formats=[pt2]", "check_impressions=20")
    jobs.run("jobs.compare", f"runs=[{remote}/run,{local}/run]", f"out={tmp_path}/comparison")
    s3.faults = none

    assert s3.content("dataset/manifest.json") == (tmp_path / "local/dataset/manifest.json").read_bytes()
    newest = sorted((tmp_path / "local/run/checkpoints").iterdir())[-1]
    found = files_of(s3, "run")
    for path in newest.iterdir():
        assert found[f"checkpoints/{newest.name}/{path.name}"] == path.read_bytes(), path
    figures, wanted = (
        json.loads(text) for text in (found["metrics.json"], (tmp_path / "local/run/metrics.json").read_text())
    )
    for place in (figures, wanted):
        place.pop("provenance")
    assert figures == wanted
    scores, wanted = (
        json.loads(text)
        for text in (s3.content("scores/scores.json"), (tmp_path / "local/scores/scores.json").read_text())
    )
    assert [one["impressions"] for one in scores["files"]] == [one["impressions"] for one in wanted["files"]]
    assert {"check.json", "model.pt2", "schema.json"} <= files_of(s3, "export").keys()
    assert not {name for name in s3.names("") if name.endswith(("_lock", ".lock"))}
    assert min(s3.seen[kind] for kind in ("500", "503", "lost", "cut")) >= 1, s3.seen
    assert_no_key(s3, jobs, tmp_path)


def assert_no_key(s3: FaultyS3, jobs: Jobs, folder: Path) -> None:
    """Check every object, every file and every line for the planted key."""
    for planted in (KEY, SECRET):
        assert planted not in jobs.said
        for name in s3.names(""):
            assert planted.encode() not in s3.content(name), name
        for path in folder.rglob("*"):
            assert not path.is_file() or planted.encode() not in path.read_bytes(), path
    for line in jobs.said.splitlines():
        if line.startswith("{"):
            assert json.loads(line)["run_id"]
