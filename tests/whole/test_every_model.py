"""Every model of conf/model/ that is more than towers trains: its loss falls, it resumes, its AUCs are computed."""

import json
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import weights

from jobs.entry import compose
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from training.distributed.world import join
from training.planning.memory_estimate import tower_parameters
from training.run.continuation import check_same_schema
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

MODELS = [
    "esmm_ns",
    "escm2_ips",
    "escm2_dr",
    pytest.param("dcmt", marks=pytest.mark.acceptance),
    "shared_bottom",
    "mmoe",
    "ple",
    "aitm",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "data"
    write_tiny_dataset(path, num_contexts=60, numeric=True)
    return path


def settings_of(data: Path, out: Path, model: str, *overrides: str) -> TrainSettings:
    given = [f"data={data}", f"out={out}", f"model={model}", "plan.batch_size=64", "world.device=cpu"]
    return compose("train", TrainSettings, [*given, *overrides])


def trained(*runs: TrainSettings) -> dict[str, np.ndarray]:
    """Train each of `runs`, in one process. Return the weights of the last one."""
    for settings in runs:
        with join(settings.world) as world:
            trainer = Trainer(settings, world)
            count = np.array(sum(value.numel() for value in trainer.model.towers.parameters()))
            trainer.fit()
            found = {"count": count, **weights(trainer)}
    return found


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_falls_the_aucs_are_there_and_a_resumed_run_ends_with_the_same_bits(
    data: Path, tmp_path: Path, model: str
) -> None:
    whole = settings_of(data, tmp_path / "whole", model, "epochs=4", "log.every_steps=1", "validation.split=train")
    half = settings_of(data, tmp_path / "halves", model, "epochs=2")
    (once,) = run_ranks(trained, 1, tmp_path, half, whole)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "validation_loss" in line]
    losses = [line["validation_loss"] for line in validations]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert all(0.0 < validations[-1][f"validation_{name}"] <= 1.0 for name in ("ctr_auc", "cvr_auc", "ctcvr_auc"))
    (twice,) = run_ranks(trained, 1, tmp_path, settings_of(data, tmp_path / "halves", model, "epochs=4"))
    for name, value in once.items():
        np.testing.assert_array_equal(value, twice[name], err_msg=name)
    assert once["count"] == tower_parameters(load_manifest(data), whole)


@pytest.mark.parametrize(
    ("model", "key"),
    [("mmoe", "model.body"), ("ple", "model.body")],
)
def test_another_architecture_cannot_go_on_from_a_run(data: Path, tmp_path: Path, model: str, key: str) -> None:
    manifest, before = load_manifest(data), settings_of(data, tmp_path, "esmm")
    check_same_schema("init_from=RUN", before, manifest, settings_of(data, tmp_path, "esmm"), manifest)
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        check_same_schema("init_from=RUN", before, manifest, settings_of(data, tmp_path, model), manifest)
