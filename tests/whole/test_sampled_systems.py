"""Systems that train on samples: stopped in the middle of an epoch they go on to the same bits, and two ranks see the
batches of one."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import merged, weights

from jobs.entry import compose
from training.distributed.rank_batches import RankBatch
from training.distributed.world import join
from training.run.interrupts import EXIT_REQUEUE
from training.run.settings import TrainSettings
from training.run.trainer import StepOutcome, Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sampled") / "data"
    write_tiny_dataset(path, num_contexts=150)
    return path


def settings_of(data: Path, out: Path, *overrides: str) -> TrainSettings:
    given = [f"data={data}", f"out={out}", "plan.batch_size=32", "world.device=cpu", "model.towers.hidden=[16,8]"]
    return compose("train", TrainSettings, [*given, "world.timeout_s=60", "validation.split=null", *overrides])


class Stopped(Trainer):
    """Gets SIGTERM when it takes step `at` of the run, and remembers the samples of each step."""

    at = -1

    def step(self, rank_batch: RankBatch) -> StepOutcome:
        self.seen.append(np.sort(rank_batch.batch.impression_id[: rank_batch.num_impressions].numpy()))
        if self.steps_done == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(rank_batch)


def fit(settings: TrainSettings, at: int = -1) -> Arrays:
    """Train; this rank's weights, the exit status, and the samples of each step as `step/<number>`."""
    with join(settings.world) as world:
        trainer = Stopped(settings, world)
        trainer.at, trainer.seen = at, []
        first, status = trainer.steps_done, trainer.fit()
        seen = {f"step/{first + number}": ids for number, ids in enumerate(trainer.seen)}
        return weights(trainer) | seen | {"status": np.array(status)}


def split_off(found: Arrays) -> tuple[dict[str, list[int]], Arrays]:
    """The samples of each step, and the weights."""
    steps = {name: value.tolist() for name, value in found.items() if name.startswith("step/")}
    return steps, {name: value for name, value in found.items() if name not in (*steps, "status")}


SYSTEMS = [["model=aman", "model.sampling.unclicked=0.4"], ["model=oversampling", "model.sampling.converted=3"]]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system[0])
def test_a_sampled_run_that_is_stopped_in_an_epoch_ends_with_the_same_bits(
    data: Path, tmp_path: Path, system: list[str]
) -> None:
    steps, expected = split_off(fit(settings_of(data, tmp_path / "whole", "epochs=2", *system)))
    per_epoch = len(steps) // 2
    assert steps["step/0"] != steps[f"step/{per_epoch}"]
    at = per_epoch + 1
    stopped = fit(settings_of(data, tmp_path / "run", "epochs=2", *system), at)
    assert stopped["status"] == EXIT_REQUEUE
    resumed = fit(settings_of(data, tmp_path / "run", "epochs=2", *system))
    found, after = split_off(resumed)
    assert split_off(stopped)[0] | found == steps
    assert len(found) == len(steps) - at - 1 > 0
    for name, value in expected.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_two_ranks_see_the_samples_of_one_and_learn_the_same(data: Path, tmp_path: Path) -> None:
    system = SYSTEMS[0]
    steps, expected = split_off(fit(settings_of(data, tmp_path / "one", *system)))
    ranks = [split_off(found) for found in run_ranks(fit, 2, tmp_path, settings_of(data, tmp_path / "two", *system))]
    assert {name: sorted(ranks[0][0][name] + ranks[1][0][name]) for name in steps} == steps
    for name, value in merged([learned for _, learned in ranks]).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4, err_msg=name)
