"""A run under the real torchrun, killed and started again; `python -m benchmarks.faults` does it twenty times and more."""

from dataclasses import replace
from pathlib import Path

from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset

from benchmarks.faults import kill_at
from benchmarks.torchrun_runs import Run
from training.distributed.world import join
from training.run.interrupts import REQUEUE
from training.run.run_folder import load_settings
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def fit(settings: TrainSettings) -> Arrays:
    with join(settings.world) as world:
        assert Trainer(settings, world).fit() == 0
    return {}


def test_a_run_killed_under_torchrun_goes_on_to_the_files_of_an_undisturbed_one(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=150)
    overrides = ["epochs=2", "plan.batch_size=32", "model.towers.hidden=[8]", "model.towers.dropout=0.3"]
    run = Run(tmp_path / "run", tmp_path / "data", [*overrides, "checkpoint.every_steps=3"])
    kill_at(run, 7, "SIGKILL rank 0")
    assert run.last_step() >= 3
    assert kill_at(run, 12, "SIGTERM torchrun").status != 0
    assert (run.out / REQUEUE).exists()
    done = run.finish(run.start(2))
    assert done.status == 0, done.told
    assert not (run.out / REQUEUE).exists()
    whole = Run(tmp_path / "whole", tmp_path / "data")
    run_ranks(fit, 2, tmp_path / "ranks", replace(load_settings(run.out), out=str(whole.out)))
    assert run.files() == whole.files()
    assert len(run.batches()) == int(run.files()["step"].removeprefix("step-"))
