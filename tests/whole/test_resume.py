"""Stopping and going on: signals, ranks that are killed, another number of ranks, validation and early stopping."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import merged, tiny_settings, weights
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import InputError
from training.checkpoint.files import find_newest, folder
from training.checkpoint.meta import META_FILE, Position
from training.distributed.rank_batches import RankBatch
from training.distributed.settings import ShardingSettings
from training.distributed.world import World, join
from training.evaluation.prediction_files import PredictionFiles
from training.run.evaluate import predict_run
from training.run.interrupts import EXIT_CTRL_C, EXIT_REQUEUE, REQUEUE
from training.run.journal import LOG
from training.run.run_folder import lock_run
from training.run.settings import TrainSettings
from training.run.trainer import StepOutcome, Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "data"
    write_tiny_dataset(path, num_contexts=150)
    return path


def shuffled(data: Path, out: Path, epochs: int = 2) -> TrainSettings:
    settings = tiny_settings(data, out, batch_size=32, dropout=0.3, epochs=epochs)
    settings.log.every_steps = 1
    return settings


class Signalled(Trainer):
    """Gets `signal` when it takes step `at` of the run (rank 1 gets it, where there are several)."""

    at, signal = -1, signal.SIGTERM

    def step(self, rank_batch: RankBatch) -> StepOutcome:
        self.seen.append(np.sort(rank_batch.batch.impression_id[: rank_batch.num_impressions].numpy()))
        if self.steps_done == self.at and self.world.rank == self.world.size - 1:
            os.kill(os.getpid(), self.signal)
        return super().step(rank_batch)


def fit(settings: TrainSettings, at: int = -1, number: int = signal.SIGTERM) -> Arrays:
    """Train, with a signal at a step; this rank's weights, the exit status, the impressions of each step."""
    with join(settings.world) as world:
        trainer = Signalled(settings, world)
        trainer.at, trainer.signal, trainer.seen = at, number, []
        status = trainer.fit()
        most = max((len(ids) for ids in trainer.seen), default=0)
        seen = np.array([np.pad(ids, (0, most - len(ids)), constant_values=-1) for ids in trainer.seen])
        return weights(trainer) | {"status": np.array(status), "seen": seen}


def split_off(ranks: list[Arrays]) -> tuple[list[int], list[list[int]], Arrays]:
    """The exit statuses, the sorted impressions of each global batch, and the weights of the whole world."""
    statuses = [int(rank.pop("status")) for rank in ranks]
    steps = [np.sort(np.concatenate(parts)) for parts in zip(*(rank.pop("seen") for rank in ranks), strict=True)]
    return statuses, [step[step >= 0].tolist() for step in steps], merged(ranks)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_a_signal_reaches_alone_stop_together_and_go_on_to_the_same_weights(
    data: Path, tmp_path: Path, ranks: int
) -> None:
    """Sums of more than two ranks round by the order of what is summed, which a restart must not change."""
    settings, undisturbed = (shuffled(data, tmp_path / name, epochs=4 // ranks) for name in ("run", "whole"))
    for one in (settings, undisturbed):
        one.sharding = ShardingSettings(tables={"user_brands": "data_parallel", "item_intention": "data_parallel"})
    _, steps, expected = split_off(run_ranks(fit, ranks, tmp_path / "a", undisturbed))
    seen: list[list[int]] = []
    for at, number in ((4, signal.SIGTERM), (len(steps) // 2 + 1, signal.SIGUSR1)):
        statuses, part, _ = split_off(run_ranks(fit, ranks, tmp_path / f"at{at}", settings, at, number))
        assert statuses == [EXIT_REQUEUE] * ranks
        assert (tmp_path / "run" / REQUEUE).exists()
        seen += part
        assert len(seen) == at + 1
    statuses, part, found = split_off(run_ranks(fit, ranks, tmp_path / "end", settings))
    assert statuses == [0] * ranks
    assert not (tmp_path / "run" / REQUEUE).exists()
    assert seen + part == steps
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


class StockDdp(Signalled):
    """Its towers are in DistributedDataParallel as torch makes it."""

    def __init__(self, settings: TrainSettings, world: World) -> None:
        super().__init__(settings, world)
        if not self.finished:
            self.model.network.towers = DistributedDataParallel(self.model.towers)


def train_ranks(settings: TrainSettings, at: int, trainer_class: type[Signalled]) -> Arrays:
    """Train with `trainer_class`, whose last rank gets SIGKILL at step `at`; this rank's weights."""
    with join(settings.world) as world:
        trainer = trainer_class(settings, world)
        trainer.at, trainer.signal, trainer.seen = at, signal.SIGKILL, []
        assert isinstance(trainer.model.network.towers, DistributedDataParallel)
        try:
            trainer.fit()
        except InputError:
            return {}  # of a rank that outlives another
        return weights(trainer)


@pytest.mark.parametrize("ranks", [3, 4])
def test_killed_ranks_resume_to_the_same_bits_as_those_of_stock_ddp_do_not(
    data: Path, tmp_path: Path, ranks: int
) -> None:
    """Three ranks and more: their gradients' sum rounds by its order, which a restart must not change."""
    num_different = {}
    for trainer_class in (Signalled, StockDdp):
        name = trainer_class.__name__
        whole, settings = (shuffled(data, tmp_path / name / run, epochs=1) for run in ("whole", "run"))
        for one in (whole, settings):
            one.plan.lanes, one.plan.batch_size = ranks * 2, 48
            one.model.towers.hidden = [64, 32]
            one.world = replace(one.world, timeout_s=20)
            one.checkpoint.every_steps, one.checkpoint.asynchronous = 3, False
        expected = merged(run_ranks(train_ranks, ranks, tmp_path / name / "a", whole, -1, trainer_class))
        with pytest.raises(AssertionError, match="exit statuses"):  # the killed rank's
            run_ranks(train_ranks, ranks, tmp_path / name / "b", settings, 7, trainer_class)
        found = find_newest(tmp_path / name / "run", print)
        assert found is not None
        assert found.position == Position(0, 6)
        resumed = merged(run_ranks(train_ranks, ranks, tmp_path / name / "c", settings, -1, trainer_class))
        assert resumed.keys() == expected.keys()
        num_different[name] = sum(int((resumed[key] != expected[key]).sum()) for key in expected)
    assert num_different["Signalled"] == 0
    assert num_different["StockDdp"] > 0


def test_another_number_of_ranks_goes_on_with_the_same_batches_to_the_same_loss(data: Path, tmp_path: Path) -> None:
    _, steps, _ = split_off([fit(shuffled(data, tmp_path / "whole"))])
    settings = shuffled(data, tmp_path / "run")
    seen: list[list[int]] = []
    for ranks, at in ((2, 5), (1, 12), (4, -1)):
        _, part, _ = split_off(run_ranks(fit, ranks, tmp_path / f"w{ranks}", settings, at))
        seen += part
    assert seen == steps
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / run / LOG).read_text().splitlines()]
        for run in ("whole", "run")
    ]
    assert losses[0][-2] == pytest.approx(losses[1][-2], abs=1e-4)


def test_ctrl_c_saves_and_leaves_no_word_for_the_scheduler(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run")
    before = signal.getsignal(signal.SIGINT)  # Spark's, where another test has started it
    assert fit(settings, 3, signal.SIGINT)["status"] == EXIT_CTRL_C
    found = find_newest(tmp_path / "run", print)
    assert found is not None
    assert found.position == Position(0, 4)
    assert not (tmp_path / "run" / REQUEUE).exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_checkpoints_come_every_n_steps_and_by_the_clock(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run", epochs=1)
    settings.checkpoint.every_steps, settings.checkpoint.keep = 5, 99
    num_steps = len(fit(settings)["seen"])
    saved = [int(path.name[-8:]) for path in sorted(folder(tmp_path / "run").iterdir())]
    assert saved == [*range(5, num_steps, 5), num_steps]
    settings = shuffled(data, tmp_path / "clock", epochs=1)
    settings.checkpoint.every_minutes, settings.checkpoint.keep = 1e-9, 99
    fit(settings)
    assert len(list(folder(tmp_path / "clock").iterdir())) == num_steps


def test_validation_is_exact_over_all_ranks_and_early_stopping_keeps_the_best(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run", epochs=40)
    settings.early_stopping.metric, settings.early_stopping.patience = "ctr_auc", 2
    run_ranks(fit, 2, tmp_path / "ranks", settings)
    entries = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    aucs = [entry["validation_ctr_auc"] for entry in entries if "validation_ctr_auc" in entry]
    assert 3 <= len(aucs) < 40
    assert max(aucs) == aucs[-3]
    found = find_newest(tmp_path / "run", print)
    assert found is not None
    assert found.validation is not None
    assert (found.validation.best, found.validation.num_worse) == (aucs[-3], 2)
    with join(settings.world) as world:
        assert Trainer(settings, world).finished
        predicted = predict_run(Path(settings.out), settings, "validation", None, world, "best")
    best = f"validation.step-{found.validation.best_steps:08d}"
    assert predicted.paths.predictions.parent == tmp_path / "run" / "evaluations" / best
    columns = PredictionFiles(predicted.paths.predictions, "")
    positive, negative = columns["p_ctr"][columns["click"] == 1], columns["p_ctr"][columns["click"] == 0]
    wins = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
    assert aucs[-3] == pytest.approx(wins / (len(positive) * len(negative)), abs=1e-3)


def test_a_metric_that_the_model_cannot_give_is_refused(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run")
    settings.early_stopping.metric = "ctavr_auc"
    with pytest.raises(InputError, match=r"early_stopping\.metric=ctavr_auc is not one of loss, ctr_auc"):
        fit(settings)


def killed(settings: TrainSettings, at: int, number: int) -> Arrays:
    try:
        fit(settings, at, number)
    except InputError as error:
        return {"told": np.array(str(error))}
    return {}


def test_a_rank_that_stops_answering_ends_the_others_in_one_sentence(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run")
    settings.world = replace(settings.world, timeout_s=8)
    settings.checkpoint.every_steps, settings.checkpoint.asynchronous = 2, False
    with pytest.raises(AssertionError):  # the killed rank's own exit status
        run_ranks(killed, 2, tmp_path / "ranks", settings, 5, signal.SIGKILL)
    assert "Another rank ended, or did not answer within world.timeout_s" in str(
        np.load(tmp_path / "ranks" / "rank-0.npz")["told"]
    )
    found = find_newest(tmp_path / "run", print)
    assert found is not None
    assert found.position == Position(0, 4)
    assert json.loads((found.path / META_FILE).read_text())["world_size"] == 2


def outlived(settings: TrainSettings, at: int, pids: Path) -> Arrays:
    """Rank 1 stops at a step, as a process does that a debugger or a frozen node holds."""
    rank = int(os.environ["RANK"])
    (pids / f"{rank}.pid").write_text(str(os.getpid()))
    found = killed(settings, at, signal.SIGSTOP)
    if rank == 0:
        os.kill(int((pids / "1.pid").read_text()), signal.SIGKILL)
    return found


def test_a_rank_that_is_stopped_past_the_timeout_ends_the_others(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run")
    settings.world = replace(settings.world, timeout_s=8)
    settings.checkpoint.every_steps, settings.checkpoint.asynchronous = 2, False
    with pytest.raises(AssertionError, match=r"\[0, -9\]"):
        run_ranks(outlived, 2, tmp_path / "ranks", settings, 5, tmp_path)
    assert "did not answer within world.timeout_s=8" in str(np.load(tmp_path / "ranks" / "rank-0.npz")["told"])
    found = find_newest(tmp_path / "run", print)
    assert found is not None
    assert found.position == Position(0, 4)


def test_a_run_that_is_being_trained_is_not_begun_a_second_time(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run", epochs=1)
    with join(settings.world) as world:
        told = rf"is being trained already, by process {os.getpid()} on"
        with lock_run(Path(settings.out)), pytest.raises(InputError, match=told):
            Trainer(settings, world)  # before it reads a checkpoint that the other may delete, or writes its settings
        assert Trainer(settings, world).fit() == 0


def test_the_tables_optimizer_counts_updates_alone_and_goes_on_counting(data: Path, tmp_path: Path) -> None:
    """What Adam corrects its bias by on a GPU; FBGEMM itself would count the forward passes of each process."""
    settings = shuffled(data, tmp_path / "run", epochs=1)
    settings.validation.every_steps = 2
    assert fit(settings, 5)["status"] == EXIT_REQUEUE
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.model.settings.embeddings.name = (
            "adam"  # which a CPU's kernels refuse; no other optimizer is told a count
        )
        rank_batch = next(trainer.batches())
        trainer.model.forward(rank_batch.batch, rank_batch.ids, rank_batch.step)
        counts = {int(kernel.iter_cpu.item()) for kernel in trainer.model._fused.modules}
        assert (rank_batch.step, counts) == (6, {7})
        trainer.close()


class SignalledInValidation(Trainer):
    """Rank 1 gets SIGTERM as it begins to validate."""

    def _validate(self) -> bool:
        if self.steps_done and self.position.step == 0 and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._validate()


def stopped_in_validation(settings: TrainSettings) -> Arrays:
    with join(settings.world) as world:
        return {"status": np.array(SignalledInValidation(settings, world).fit())}


def test_a_signal_does_not_wait_for_the_end_of_a_validation(data: Path, tmp_path: Path) -> None:
    settings = shuffled(data, tmp_path / "run")
    for _ in range(2):  # a start that validates first, and gets the signal there, loses nothing either
        ranks = run_ranks(stopped_in_validation, 2, tmp_path / "ranks", settings)
        assert [rank["status"] for rank in ranks] == [EXIT_REQUEUE] * 2
        found = find_newest(tmp_path / "run", print)
        assert found is not None
        assert (found.position, found.validation) == (Position(1, 0), None)
    fit(settings)
    assert "validation_loss" in (tmp_path / "run" / LOG).read_text()
    found = find_newest(tmp_path / "run", print)
    assert found is not None
    assert found.validation is not None
