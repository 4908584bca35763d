import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps, tiny_settings, weights

from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from training.checkpoint.files import find_newest
from training.checkpoint.meta import Position
from training.distributed.world import join
from training.model.settings import GraphSettings
from training.run.journal import LOG
from training.run.run_folder import CONFIG, load_settings
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trainer") / "data"
    write_tiny_dataset(path, num_contexts=150)
    return path


def fit(settings: TrainSettings) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.fit()
        return {} if trainer.finished else weights(trainer)


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


def test_the_loss_falls(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run", batch_size=32, epochs=6)
    settings.log.every_steps = 10
    fit(settings)
    entries = log_of(tmp_path / "run")
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    entry = log_of(tmp_path / "run")[0]
    assert entry["loss"] == pytest.approx(entry["loss_click"] + entry["loss_conversion"])
    assert entry.keys() >= {"epoch", "step", "impressions_per_s", "waiting_share"}
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_finished_run_says_so_and_does_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    fit(settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    capsys.readouterr()
    assert fit(settings) == {}
    assert "has its 1 epochs already; nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(data: Path, tmp_path: Path) -> None:
    whole = fit(tiny_settings(data, tmp_path / "whole", dropout=0.3, epochs=3))
    fit(tiny_settings(data, tmp_path / "run", dropout=0.3, epochs=1))
    with (tmp_path / "run" / LOG).open("a") as log:
        log.write('{"step": 99, "loss": 1.0}\n{"st')  # of an epoch that was killed
    resumed = fit(tiny_settings(data, tmp_path / "run", dropout=0.3, epochs=3))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    steps = [entry["step"] for entry in log_of(tmp_path / "run") if "loss" in entry]
    assert steps == sorted(set(steps))
    found = find_newest(tmp_path / "run", print)
    assert found is not None
    assert found.position == Position(3, 0)


def losses_with_an_idle_rank(settings: TrainSettings, num_steps: int) -> Arrays:
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        sizes = [rank_batch.num_impressions for rank_batch in trainer.batches()]
        return {"losses": np.array(take_steps(trainer, num_steps)), "sizes": np.array(sizes)}


def test_a_rank_without_impressions_takes_part_in_the_last_step(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path / "data", num_contexts=12)
    # Eight lanes of one impression a step: whatever is left over falls to the last lanes, that is the last ranks.
    settings = tiny_settings(tmp_path / "data", tmp_path / "four", batch_size=8)
    ranks = run_ranks(losses_with_an_idle_rank, 4, tmp_path / "ranks", settings, 100)
    sizes = np.stack([rank["sizes"] for rank in ranks])
    assert sizes.sum() == manifest.totals["train"]["impressions"]
    assert sizes[:, -1].min() == 0
    alone = losses_with_an_idle_rank(replace(settings, out=str(tmp_path / "one")), 100)
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], alone["losses"], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_before_it_touches_a_weight(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        take_steps(trainer, 2)
        with torch.no_grad():
            list(trainer.model.towers.children())[1].context_weight.fill_(float("nan"))
        before = weights(trainer)
        with pytest.raises(
            InputError,
            match=r"The loss `conversion` is not finite at step 0 of epoch 0, which reads train/part-\S+ row group \d",
        ):
            take_steps(trainer, 1)
        for name, value in weights(trainer).items():
            np.testing.assert_array_equal(value, before[name])


def told_to_a_rank(settings: TrainSettings, number: int, folder: str, key: str = "data") -> Arrays:
    """What rank `number` reads it reads from `folder`; what ends the run on this rank."""
    if os.environ["RANK"] == str(number):
        settings = replace(settings, **{key: folder})
    with join(settings.world) as world:
        try:
            Trainer(settings, world).fit()
        except InputError as error:
            return {"told": np.array(str(error))}
    return {"told": np.array("")}


def told_to_all(settings: TrainSettings, folder: Path, *broken: Any) -> str:
    """The one sentence that two ranks end with where rank 1 meets what is `broken`."""
    told = {str(rank["told"]) for rank in run_ranks(told_to_a_rank, 2, folder, settings, 1, *broken)}
    assert len(told) == 1, told
    return told.pop()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_shard_that_one_rank_alone_cannot_read_ends_the_run_on_all_of_them(
    data: Path, tmp_path: Path, split: str
) -> None:
    shutil.copytree(data, tmp_path / "data")
    victim = load_manifest(data).files_of(split)[-1].path
    content = (data / victim).read_bytes()
    (tmp_path / "data" / victim).write_bytes(content[:-50] + b"x" * 50)
    told = told_to_all(tiny_settings(data, tmp_path / "run"), tmp_path / "ranks", str(tmp_path / "data"))
    assert f"{victim} has the checksum" in told


def test_what_one_rank_alone_finds_before_the_first_step_ends_the_run_on_all_of_them(
    data: Path, tmp_path: Path
) -> None:
    nothing, ranks = str(tmp_path / "nothing"), tmp_path / "ranks"
    told = told_to_all(tiny_settings(data, tmp_path / "run"), ranks, nothing)
    assert f"{nothing} does not exist" in told
    fit(tiny_settings(data, tmp_path / "before"))
    settings = replace(tiny_settings(data, tmp_path / "run"), init_from=str(tmp_path / "before"))
    assert "has no config.yaml" in told_to_all(settings, ranks, nothing, "init_from")


def test_validation_divides_the_loss_as_training_does(data: Path, tmp_path: Path) -> None:
    """A model trained on clicks, judged on the very rows that it trained on."""
    settings = tiny_settings(data, tmp_path / "run", batch_size=800)
    settings.model.graph = GraphSettings(
        ["conversion | click"], ["conversion | click"], {"p_cvr": "conversion | click"}
    )
    settings.model.train_on, settings.validation.split = "clicks", "train"
    settings.optimizer.towers.lr = settings.optimizer.embeddings.lr = 1e-9
    fit(settings)
    entries = log_of(tmp_path / "run")
    assert entries[1]["validation_loss"] == pytest.approx(entries[0]["loss"], rel=1e-4)


def refusal(settings: TrainSettings) -> str:
    with pytest.raises(InputError) as caught, join(settings.world) as world:
        Trainer(settings, world)
    return str(caught.value)


def test_a_run_begun_with_other_settings_is_refused(data: Path, tmp_path: Path) -> None:
    fit(tiny_settings(data, tmp_path / "run"))
    other = tiny_settings(data, tmp_path / "run", epochs=2)
    other.model.towers.hidden = [16, 4]
    assert "was started with model.towers.hidden=[16, 8] and this command says [16, 4]" in refusal(other)


def test_settings_may_change_as_long_as_there_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    settings.optimizer.embeddings.name = "adam"
    assert "has no kernel on cpu" in refusal(settings)
    assert not (tmp_path / "run").exists()
    for width in (4, 5):
        settings = tiny_settings(data, tmp_path / "run")
        settings.model.towers.hidden = [width]
        with join(settings.world) as world:
            Trainer(settings, world)
        assert load_settings(tmp_path / "run") == settings


def test_a_run_begun_on_another_dataset_is_refused(data: Path, tmp_path: Path) -> None:
    fit(tiny_settings(data, tmp_path / "run"))
    write_tiny_dataset(tmp_path / "other", num_contexts=150, seed=2)
    assert "is not the dataset that" in refusal(tiny_settings(tmp_path / "other", tmp_path / "run", epochs=2))


def test_a_model_that_needs_daction_is_refused_where_there_is_none(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    settings.model.graph = GraphSettings(
        ["click | impression", "daction | click"], ["click", "daction"], {"p": "click"}
    )
    assert "needs the label daction" in refusal(settings)
    assert not (tmp_path / "run").exists()


def test_the_saved_settings_are_read_as_values_only(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    fit(settings)
    assert load_settings(tmp_path / "run") == settings
    path = tmp_path / "run" / CONFIG
    signed = path.read_text()
    text = signed[: signed.index("# xxh3 of the lines above: ")]  # as earlier releases wrote it
    path.write_text(text)
    assert load_settings(tmp_path / "run") == settings
    for planted, told in (
        (text.replace("seed: 1", "seed: ${oc.env:HOME}", 1), "interpolation"),
        (text + "_target_: os.system\n", "_target_"),
        (text.replace("seed: 1", "seed: one", 1), "does not fit this release"),
        (text + "sede: 1\n", "does not fit this release"),
        ("a: [", "is no plain YAML"),
        ("name: &a [*a]\n", "alias"),
        ("[" * 3000, "nested deeper"),
        (signed.replace("dropout: 0.0", "dropout: 0.1"), "has been changed since it was written"),
    ):
        path.write_text(planted)
        with pytest.raises(InputError, match=told):
            load_settings(tmp_path / "run")
    with pytest.raises(InputError, match=r"has no config\.yaml"):
        load_settings(tmp_path / "nothing")


def test_a_dataset_without_the_split_or_the_field_is_refused(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    settings.embedding.dims = {"item": 8}
    assert "the dataset has no field item" in refusal(settings)
    assert len(load_manifest(data).fields) == 5


def test_a_label_without_positives_is_said_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_tiny_dataset(tmp_path / "data", num_contexts=12)
    totals = {split: {**counts, "conversions": 0} for split, counts in manifest.totals.items()}
    settings = tiny_settings(tmp_path / "data", tmp_path / "run")
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.manifest = replace(trainer.manifest, totals=totals)
        trainer.fit()
    assert "ALERT No impression of the train split has conversion=1" in capsys.readouterr().err
