import json
import os
import signal
from pathlib import Path
from tempfile import mkdtemp
from typing import TextIO

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

from pipeline.errors import InputError
from training.checkpoint.files import find_checkpoint
from training.checkpoint.meta import path_of
from training.distributed.rank_batches import RankBatch
from training.distributed.world import join
from training.run.interrupts import EXIT_REQUEUE
from training.run.journal import LOG, TENSORBOARD, Journal, LoggedStep
from training.run.settings import LogSettings, TrainSettings
from training.run.trainer import StepOutcome, Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "data"
    write_tiny_dataset(path, num_contexts=150)
    return path


class StoppedTrainer(Trainer):
    """Gets SIGTERM in the steps `at`."""

    at: tuple[int, ...] = ()

    def step(self, rank_batch: RankBatch) -> StepOutcome:
        if self.steps_done in self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(rank_batch)


def fit(settings: TrainSettings, at: tuple[int, ...] = ()) -> int:
    with join(settings.world) as world:
        trainer = StoppedTrainer(settings, world)
        trainer.at = at
        return trainer.fit()


def entries_of(run: Path) -> list[dict]:
    """The entries of log.jsonl, without what is of the time that they took."""
    entries = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [
        {key: entry[key] for key in entry if key not in ("impressions_per_s", "waiting_share")} for entry in entries
    ]


def points_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard draws, likewise."""
    board = EventAccumulator(str(run / TENSORBOARD)).Reload()
    names = set(board.Tags()["scalars"]) - {"impressions_per_s", "waiting_share"}
    return {name: [(point.step, point.value) for point in board.Scalars(name)] for name in names}


@pytest.mark.parametrize("every_steps", [1, 7])
def test_a_run_that_was_stopped_has_the_log_and_the_points_of_an_undisturbed_one(
    data: Path, tmp_path: Path, every_steps: int
) -> None:
    for name, stops in (("whole", ()), ("run", (3, 9, 10))):
        settings = tiny_settings(data, tmp_path / name, dropout=0.3, epochs=2)
        settings.log.every_steps, settings.validation.every_steps, settings.checkpoint.keep = every_steps, 5, 99
        settings.optimizer.towers.schedule.warmup_steps = 8
        for at in stops:
            assert fit(settings, (at,)) == EXIT_REQUEUE
        assert fit(settings) == 0
    assert entries_of(tmp_path / "run") == entries_of(tmp_path / "whole")
    points = points_of(tmp_path / "whole")
    assert points_of(tmp_path / "run") == points
    assert points["loss"][0][0] == every_steps
    assert points.keys() >= {"validation_loss", "learning_rate_towers", "gradient_norm_towers", "best_value"}
    rates = [value for _, value in points["learning_rate_towers"]]
    assert rates[0] == pytest.approx(settings.optimizer.towers.lr * every_steps / 8)
    assert rates[-1] == pytest.approx(settings.optimizer.towers.lr)


def test_the_logged_norm_is_that_of_the_towers_gradients_before_they_are_clipped(data: Path, tmp_path: Path) -> None:
    norms = []
    for name, clip in (("plain", 0.0), ("clipped", 1e-3)):
        settings = tiny_settings(data, tmp_path / name)
        settings.log.every_steps, settings.optimizer.towers.clip_norm = 1, clip
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            first = next(trainer.batches())
            outcome = trainer.step(first)
            left = torch.cat([parameter.grad.flatten() for parameter in trainer.model.towers.parameters()]).norm()
            trainer.close()
        norms.append(float(outcome.gradient_norm))
        assert float(left) == pytest.approx(clip or norms[0], rel=1e-3)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    fit(settings)
    assert entries_of(tmp_path / "clipped")[0]["gradient_norm_towers"] == pytest.approx(norms[1], rel=1e-6)


def test_the_logged_loss_is_what_training_minimises(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run", batch_size=800)
    settings.model.graph.loss_weights = {"conversion": 3.0}
    settings.validation.split = "train"
    settings.optimizer.towers.lr = settings.optimizer.embeddings.lr = 1e-9
    try:
        fit(settings)
    finally:
        settings.model.graph.loss_weights = {}
    entry, validated = entries_of(tmp_path / "run")
    assert entry["loss"] == pytest.approx(entry["loss_click"] + 3 * entry["loss_conversion"], rel=1e-9)
    assert validated["validation_loss"] == pytest.approx(entry["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def data_with_few_clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose validation split has too few clicks for an AUC of conversions."""
    path = tmp_path_factory.mktemp("journal") / "few"
    manifest = write_tiny_dataset(
        path, num_contexts=60, seed=2, splits={"train": 0.9, "validation": 1 / 60, "test": 1 / 15}, max_impressions=2
    )
    assert manifest.totals["validation"]["conversions"] == 0
    return path


def test_an_undefined_figure_is_neither_better_nor_worse(
    data_with_few_clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = tiny_settings(data_with_few_clicks, tmp_path / "run", epochs=4)
    settings.early_stopping.metric, settings.early_stopping.patience = "cvr_auc", 1
    assert fit(settings) == 0
    told = capsys.readouterr().err
    assert "stopped early" not in told
    assert "cvr_auc undefined" in told
    assert "is kept; checkpoint=best" not in told
    validated = [entry for entry in entries_of(tmp_path / "run") if "validation_loss" in entry]
    assert [entry["validation_cvr_auc"] for entry in validated] == [None] * 4
    assert [entry["best_step"] for entry in validated] == [None] * 4
    with pytest.raises(InputError, match="has no best checkpoint: cvr_auc was undefined in every validation"):
        find_checkpoint(tmp_path / "run", "best", print)


def test_an_early_stop_and_the_best_step_are_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = tiny_settings(data, tmp_path / "run", epochs=40)
    settings.log.every_steps = 7
    settings.early_stopping.metric, settings.early_stopping.patience = "loss", 2
    settings.optimizer.towers.lr = 0.2
    assert fit(settings) == 0
    entries = entries_of(tmp_path / "run")
    validated = [entry for entry in entries if "validation_loss" in entry]
    assert len(validated) < 40
    best = min(validated, key=lambda entry: entry["validation_loss"])
    assert [entry.get("stops_early", False) for entry in validated] == [False] * (len(validated) - 1) + [True]
    for key, value in (("best_metric", "loss"), ("best_value", best["validation_loss"]), ("best_step", best["step"])):
        assert validated[-1][key] == value
    assert max(entry["step"] for entry in entries if "loss" in entry) == validated[-1]["step"]
    told = capsys.readouterr().err
    said = f"best loss, {best['validation_loss']:.4f} after step {best['step']}"
    assert f"stopped early after step {validated[-1]['step']} of" in told
    assert f"2 validations in a row were not better than the {said}" in told
    assert f"The checkpoint of the {said}, is kept; checkpoint=best" in told
    assert fit(settings) == 0
    assert "stopped early after step" in (told := capsys.readouterr().err)
    assert "nothing to do: raise early_stopping.patience" in told

    # The same run by another metric: the best loss is no best AUC, and the stop by it no longer holds.
    settings.early_stopping.metric, settings.epochs = "ctr_auc", len(validated) + 1
    assert fit(settings) == 0
    assert "early_stopping.metric was loss and is ctr_auc" in capsys.readouterr().err
    last = entries_of(tmp_path / "run")[-1]
    assert (last["best_metric"], last["best_value"]) == ("ctr_auc", last["validation_ctr_auc"])


def logged(steps_done: int) -> LoggedStep:
    return LoggedStep(0, steps_done, [0.5], 10, {"towers": 0.1}, torch.tensor(2.0))


def full_disk() -> TextIO:
    return open("/dev/full", "w", encoding="utf-8")


def test_what_cannot_be_written_is_told_and_leaves_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = LogSettings(every_steps=1)
    journal = Journal(tmp_path, settings, {"click": 1.0}, 0, 9)
    journal._log.close()
    journal._log = full_disk()
    journal.step(logged(1), 0.0)
    assert "log.jsonl or" in str(journal.error)
    assert "cannot be written (No space left on device); make room there" in str(journal.error)
    journal.close()
    for name, make, said in (
        (TENSORBOARD, lambda path: path.write_text("a file in the place of the folder"), r"tensorboard .*File exists"),
        (LOG, os.mkfifo, r"log\.jsonl is no regular file"),
        (LOG, os.mkdir, r"log\.jsonl is no regular file"),
    ):
        run = Path(mkdtemp(dir=tmp_path))
        make(run / name)
        with pytest.raises(InputError, match=said):
            Journal(run, settings, {"click": 1.0}, 0, 9)
    assert "Traceback" not in capsys.readouterr().err


class OnFullDiskTrainer(Trainer):
    """The disk is full from its third step on."""

    def step(self, rank_batch: RankBatch) -> StepOutcome:
        if self.steps_done == 2 and self._journal:
            self._journal._log.close()
            self._journal._log = full_disk()
        return super().step(rank_batch)


def test_a_full_disk_ends_the_run_before_a_checkpoint_that_the_log_lacks(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    settings.log.every_steps = settings.checkpoint.every_steps = 1
    with pytest.raises(InputError, match="No space left on device"), join(settings.world) as world:
        OnFullDiskTrainer(settings, world).fit()
    assert path_of(tmp_path / "run", 2).exists()
    assert not path_of(tmp_path / "run", 3).exists()
    assert fit(settings) == 0
    steps = [entry["step"] for entry in entries_of(tmp_path / "run") if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1))


def test_a_log_of_another_hand_is_read_line_by_line(tmp_path: Path) -> None:
    good = b'{"step": 2, "loss": 0.5}\n'
    (tmp_path / LOG).write_bytes(b'\xff\xfe\n[1]\n"step"\n{"step": "x"}\n{"step": 9}\n' + good + b'{"step": 1}')
    Journal(tmp_path, LogSettings(), {"click": 1.0}, 3, 9).close()
    assert (tmp_path / LOG).read_bytes() == good
