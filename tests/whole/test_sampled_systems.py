"""Systems that train on samples: stopped in the middle of an epoch they go on to the same bits, and two ranks see the
batches of one."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import merged, weights

from jobs.entry import compose
from pipeline.errors import InputError
from training.distributed.rank_batches import RankBatch
from training.distributed.world import join
from training.run import sampled
from training.run.evaluate import predict_run
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


@pytest.fixture(scope="module")
def ctr_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of model=ctr whose train and validation splits are predicted."""
    run = tmp_path_factory.mktemp("ctr") / "run"
    settings = settings_of(data, run, "model=ctr")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
        for split in ("train", "validation"):
            predict_run(run, settings, split, None, world)
    return run


def p_ctr_of(run: Path, split: str = "train") -> dict[int, float]:
    """pCTR of the clicked impressions, read row by row."""
    rows = pq.read_table(run / "predictions" / split).to_pylist()
    return {row["impression_id"]: row["p_ctr"] for row in rows if row["click"]}


def test_unbias_trains_on_accepted_clicks_and_resumes_to_the_same_bits(
    data: Path, ctr_run: Path, tmp_path: Path
) -> None:
    system = ["model=unbias", f"ctr_run={ctr_run}", "epochs=2", "plan.batch_size=16"]
    steps, expected = split_off(fit(settings_of(data, tmp_path / "whole", *system)))
    p_ctr, samples = p_ctr_of(ctr_run), [ids for ids in steps.values() for ids in ids]
    assert set(samples) <= set(p_ctr)
    assert len(samples) == 2 * round(sum(1 - p for p in p_ctr.values()))
    assert fit(settings_of(data, tmp_path / "run", *system), len(steps) // 2 + 1)["status"] == EXIT_REQUEUE
    moved = shutil.copytree(ctr_run, tmp_path / "moved")
    found, after = split_off(fit(settings_of(data, tmp_path / "run", *system, f"ctr_run={moved}")))
    assert found.items() <= steps.items()
    for name, value in expected.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    with join(settings_of(data, tmp_path).world) as world:
        predict_run(tmp_path / "run", settings_of(data, tmp_path / "run", *system), "test", None, world)


def test_unbias_counts_its_samples_once_and_refuses_other_predictions_of_a_run_that_has_begun(
    data: Path, ctr_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mine = tmp_path / "run", shutil.copytree(ctr_run, tmp_path / "ctr")
    settings = settings_of(data, run, "model=unbias", f"ctr_run={mine}", "epochs=2")
    fit(settings, 1)
    monkeypatch.setattr(sampled, "expected_of_row_groups", lambda *_: pytest.fail("counted again"))
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        assert trainer.plan.num_impressions == round(sum(1 - p for p in p_ctr_of(mine).values()))
        trainer.close()
    (file,) = (mine / "predictions" / "train").glob("*.parquet")
    table = pq.read_table(file)
    place = table.column_names.index("p_ctr")
    pq.write_table(table.set_column(place, "p_ctr", pc.multiply(table["p_ctr"], np.float32(0.5))), file)
    with join(settings.world) as world, pytest.raises(InputError, match="other predictions of the train split"):
        Trainer(settings, world)


def test_unbias_weighted_trains_validates_and_asks_for_the_predictions_of_both_splits(
    data: Path, ctr_run: Path, tmp_path: Path
) -> None:
    system = ["model=unbias_weighted", f"ctr_run={ctr_run}", "validation.split=validation", "model.sampling.clip=5"]
    settings = settings_of(data, tmp_path / "run", *system)
    inverse = {key: min(1 / p, 5) for key, p in p_ctr_of(ctr_run).items()}
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        mean, seen = sum(inverse.values()) / len(inverse), 0
        for rank_batch in trainer.batches():
            labels, ids = rank_batch.batch.labels, rank_batch.batch.impression_id.tolist()
            wanted = [inverse[impression_id] / mean for impression_id in ids]
            np.testing.assert_allclose(labels["importance"].numpy(), wanted, rtol=1e-5)
            seen += len(ids)
        assert seen == len(inverse)
        assert trainer.fit() == 0
        assert trainer.validation_state is not None
    (tmp_path / "without").mkdir()
    for split, missing in (("train", "validation"), ("validation", "train")):
        half = tmp_path / f"half-{split}"
        shutil.copytree(ctr_run / "predictions" / split, half / "predictions" / split)
        with join(settings.world) as world, pytest.raises(InputError, match=f"no predictions of split={missing}"):
            Trainer(settings_of(data, tmp_path / "other", *system, f"ctr_run={half}"), world)


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


@pytest.mark.parametrize("model", ["aman", pytest.param("unbias", marks=pytest.mark.acceptance)])
def test_two_ranks_see_the_samples_of_one_and_learn_the_same(
    data: Path, ctr_run: Path, tmp_path: Path, model: str
) -> None:
    system = SYSTEMS[0] if model == "aman" else ["model=unbias", f"ctr_run={ctr_run}"]
    steps, expected = split_off(fit(settings_of(data, tmp_path / "one", *system)))
    ranks = [split_off(found) for found in run_ranks(fit, 2, tmp_path, settings_of(data, tmp_path / "two", *system))]
    assert {name: sorted(ranks[0][0][name] + ranks[1][0][name]) for name in steps} == steps
    for name, value in merged([learned for _, learned in ranks]).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4, err_msg=name)
