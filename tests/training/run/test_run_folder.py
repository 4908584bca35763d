from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

from pipeline.errors import InputError
from training.checkpoint.files import folder
from training.distributed.world import join
from training.run.run_folder import CONFIG, load_settings
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run_folder") / "data"
    write_tiny_dataset(path, num_contexts=60)
    return path


def refusal(settings: TrainSettings) -> str:
    with pytest.raises(InputError) as caught, join(settings.world) as world:
        Trainer(settings, world)
    return str(caught.value)


def test_a_refused_second_trainer_leaves_the_settings_of_the_first(data: Path, tmp_path: Path) -> None:
    first, second = (tiny_settings(data, tmp_path / "run") for _ in range(2))
    second.optimizer.towers.lr = 0.5
    with join(first.world) as world:
        trainer = Trainer(first, world)
        with pytest.raises(InputError, match="is being trained already, by process"):
            Trainer(second, world)
        assert load_settings(tmp_path / "run") == first
        assert trainer.fit() == 0
        assert load_settings(tmp_path / "run") == first
        Trainer(first, world).close()  # the lock is free again


def test_a_run_with_checkpoints_and_without_settings_is_refused(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    before = sorted(path.name for path in folder(tmp_path / "run").iterdir())
    (tmp_path / "run" / CONFIG).rename(tmp_path / "kept")
    settings.model.towers.hidden = [4]
    assert "has checkpoints and no config.yaml" in refusal(settings)
    assert not (tmp_path / "run" / CONFIG).exists()
    assert before == sorted(path.name for path in folder(tmp_path / "run").iterdir())

    (tmp_path / "kept").rename(tmp_path / "run" / CONFIG)
    settings = tiny_settings(data, tmp_path / "run", epochs=2)
    settings.optimizer.towers.lr = 0.25
    told = refusal(settings)
    assert "was started with optimizer.towers.lr=0.001 and this command says 0.25" in told
    assert f"start a new run from it: init_from={tmp_path / 'run'} and another out=…." in told
    settings.model.towers.hidden = [4]
    assert "init_from" not in refusal(settings)  # which would refuse it too
