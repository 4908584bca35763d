"""Secrets are planted in every way in; nothing that a job leaves, says or shows in the list of processes has one."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

from raw_log import small_log
from tiny_dataset import write_tiny_dataset

ROOT = Path(__file__).parents[2]
IN_FILE, IN_VARIABLE, IN_ENVIRONMENT = "planted-in-a-file", "planted-in-a-variable", "planted-in-the-environment"
PLANTED = (IN_FILE, IN_VARIABLE, IN_ENVIRONMENT)
OWN_SPARK = f"""\
master: local[2]
conf:
  spark.hadoop.fs.s3a.secret.key: {IN_FILE}
  spark: {{hadoop: {{fs: {{s3a: {{session: {{token: {IN_FILE}}}}}}}}}}}
  spark.hadoop.fs.s3a.access.key: ${{oc.env:PLANTED_KEY}}
  spark.eventLog.enabled: true
  spark.eventLog.compress: false
  spark.eventLog.dir: EVENTS
"""


def run(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a job; return what it said, and the command lines of it and of all that it started."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PLANTED_KEY": IN_VARIABLE,
        "AWS_SECRET_ACCESS_KEY": IN_ENVIRONMENT,
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
    }
    (folder / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    seen: set[str] = set()
    watcher = threading.Thread(target=watch, args=(process, seen))
    watcher.start()
    stdout, stderr = process.communicate(timeout=300)
    watcher.join()
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr), seen


def watch(process: subprocess.Popen[str], seen: set[str]) -> None:
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        time.sleep(0.05)


def assert_nothing_leaks(folder: Path, done: subprocess.CompletedProcess[str], commands: set[str]) -> None:
    for secret in PLANTED:
        assert secret not in done.stdout + done.stderr
        assert not [command for command in commands if secret in command]
        for path in folder.rglob("*"):
            if path.is_file() and path.parent.name != "spark":  # the file that it was planted in
                assert secret.encode() not in path.read_bytes(), path


def test_preprocessing_keeps_no_secret(tmp_path: Path) -> None:
    raw, out, mine = small_log().write(tmp_path / "raw"), tmp_path / "out", tmp_path / "mine"
    (mine / "spark").mkdir(parents=True)
    (tmp_path / "events").mkdir()
    (mine / "spark" / "own.yaml").write_text(OWN_SPARK.replace("EVENTS", str(tmp_path / "events")))
    words = ["jobs.preprocess", f"source.path={raw}", f"out={out}", "spark=own", "--config-dir", str(mine)]
    done, commands = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert any("org.apache.spark.deploy.SparkSubmit" in command for command in commands)  # the JVM was seen
    assert_nothing_leaks(tmp_path, done, commands)
    assert list((tmp_path / "events").iterdir()), "Spark's event log, which has its settings, was written"
    assert stat.S_IMODE((out / "run.json").stat().st_mode) == 0o600
    saved = (out / "run.json").read_text()
    assert '"spark.hadoop.fs.s3a.access.key": "${oc.env:PLANTED_KEY}"' in saved
    assert '"spark.hadoop.fs.s3a.secret.key": "***"' in saved
    done, commands = run(tmp_path, *words, "--help")
    assert_nothing_leaks(tmp_path, done, commands)
    assert (done.returncode, "secret.key: '***'" in done.stdout) == (0, True)
    for word in (
        f"+spark.conf={{a.secret.key: {IN_FILE}}}",
        f"+spark.conf={{a.secret.key: {IN_FILE}, [",
        f"data=s3://k:{IN_FILE}@b",
    ):
        done, _ = run(tmp_path, *words, word)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert_nothing_leaks(tmp_path, done, set())


def test_training_and_evaluation_keep_no_secret(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=60)
    out = tmp_path / "run"
    settings = ("plan.batch_size=64", "model.towers.hidden=[8]")
    done, commands = run(tmp_path, "jobs.train", f"data={tmp_path / 'data'}", f"out={out}", *settings)
    assert done.returncode == 0, done.stderr
    evaluated, more = run(tmp_path, "jobs.evaluate", f"run={out}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert_nothing_leaks(tmp_path, done, commands | more)
    assert_nothing_leaks(tmp_path, evaluated, set())
    assert stat.S_IMODE((out / "config.yaml").stat().st_mode) == 0o600
