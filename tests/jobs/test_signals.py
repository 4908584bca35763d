"""Ctrl-C and SIGTERM at chosen moments of jobs.train and jobs.evaluate: one sentence, the status that says which, nothing half-written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

ROOT = Path(__file__).parents[2]
# Runs a job, and sends itself a signal where a function is called, or a module is imported.
_JOB = """
import functools, importlib, os, runpy, signal, sys
job, where, number, *arguments = sys.argv[1:]
module, _, name = where.partition(":")
def send():
    os.kill(os.getpid(), int(number))
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            send()
if name:
    *path, last = name.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    called = getattr(owner, last)
    setattr(owner, last, lambda *given, **named: (send(), called(*given, **named))[1])
else:
    sys.meta_path.insert(0, Finder())
sys.argv = [job, *arguments]
runpy.run_module(job, run_name="__main__", alter_sys=True)
"""
STOPPED = {number: f"stopped by {name}; what was not finished is removed: start the job again.\n"
           for number, name in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"))}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signals") / "data"
    write_tiny_dataset(path, num_contexts=60)
    return path


def signalled(job: str, where: str, number: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", _JOB, job, where, str(int(number)), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)


def train(data: Path, run: Path, where: str, number: int) -> subprocess.CompletedProcess:
    settings = ("plan.batch_size=64", "model.towers.hidden=[8]", "epochs=2")
    return signalled("jobs.train", where, number, f"data={data}", f"out={run}", *settings)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("torch", signal.SIGINT),
        ("training.distributed.world:join", signal.SIGUSR1),
        ("training.run.build:build_model", signal.SIGTERM),
    ],
)
def test_a_signal_before_the_first_step_is_one_sentence(data: Path, tmp_path: Path, where: str, number: int) -> None:
    done = train(data, tmp_path / "run", where, number)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", STOPPED[number])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_signals_of_a_run_and_of_its_evaluation(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train(data, run, "training.run.validation:Validation.figures", signal.SIGTERM)
    assert done.returncode == os.EX_TEMPFAIL
    assert "is stopped and saved after step" in done.stderr
    done = train(data, run, "training.run.trainer:Trainer.close", signal.SIGTERM)  # all of it is saved
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.endswith(STOPPED[signal.SIGTERM])
    assert "Traceback" not in done.stderr
    done = signalled("jobs.evaluate", "training.run.predict:write_predictions", signal.SIGINT, f"run={run}")
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.splitlines()[1:] == STOPPED[signal.SIGINT].splitlines()  # the first says what it evaluates
    assert not list((run / "predictions").iterdir())
    assert not (run / "metrics.json").exists()
