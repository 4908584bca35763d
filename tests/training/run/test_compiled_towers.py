"""Towers and losses through torch.compile train what they train without it, and a machine that cannot compile says so."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps

from jobs.entry import compose
from pipeline.errors import InputError
from training.distributed.world import join
from training.model import compiled
from training.run import build
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "data"
    write_tiny_dataset(path, num_contexts=150, daction=True, numeric=True)
    return path


def settings_of(data: Path, out: Path, *overrides: str) -> TrainSettings:
    given = [f"data={data}", f"out={out}", "plan.batch_size=96", "world.device=cpu", "validation.split=null"]
    return compose("train", TrainSettings, [*given, "model.towers.hidden=[24,16]", *overrides])


def losses_of(settings: TrainSettings) -> list[float]:
    with join(settings.world) as world, closing(Trainer(settings, world)) as trainer:
        return take_steps(trainer, 5)


def traced(function: Any, device: torch.device) -> Any:
    """Compile as far as a graph of operators, without a compiler of machine code."""
    return torch.compile(function, backend="aot_eager", dynamic=True, fullgraph=True)


MODELS = ["model=esm2", "model=escm2_dr", "model=esmm_ns"]  # with dropout, with another loss, with own tables


@pytest.mark.parametrize(
    "model",
    [MODELS[0], *(pytest.param(model, marks=[pytest.mark.slow, pytest.mark.acceptance]) for model in MODELS[1:])],
)
def test_the_graph_of_operators_that_torch_traces_trains_the_same(
    data: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, for any number of impressions and contexts: `fullgraph` allows no part outside."""
    monkeypatch.setattr(compiled, "_compile", traced)
    found = [
        losses_of(settings_of(data, tmp_path / how, model, f"world.towers={how}")) for how in ("stacked", "compiled")
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    assert found[0][0] != found[0][4]


@pytest.mark.slow
@pytest.mark.acceptance
def test_machine_code_trains_the_same(data: Path, tmp_path: Path) -> None:
    """By torch's compiler for a CPU, which writes C++ where that for a GPU writes triton."""
    ways = ("stacked", "compiled")
    found = [losses_of(settings_of(data, tmp_path / how, MODELS[0], f"world.towers={how}")) for how in ways]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_contexts_are_filled_up_to_few_sizes() -> None:
    for rows in (1, 64, 65, 500, 1129, 70_000):
        assert rows <= compiled.size_of_graph(rows) <= max(rows + 63, rows * 9 / 8)
    assert len({compiled.size_of_graph(rows) for rows in range(1024, 2048)}) == 9
    assert compiled.size_of_graph(64) == 64


def test_what_auto_means() -> None:
    choose = partial(build.kind_of_towers, "auto")
    assert [choose("cpu", "towers", True), choose("cuda", "mmoe", True)] == ["each", "each"]
    assert [choose("cuda", "towers", True), choose("cuda", "towers", False)] == ["compiled", "stacked"]
    assert build.kind_of_towers("stacked", "cpu", "towers", True) == "stacked"


def test_where_torch_cannot_compile_the_run_says_so_and_goes_on_unless_it_was_asked_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any, device: torch.device) -> Any:
        def fail(*arguments: Any) -> None:
            raise RuntimeError("no compiler\nmore of it")

        return fail

    monkeypatch.setattr(compiled, "_compile", broken)
    with pytest.raises(
        InputError, match=r"world\.towers=compiled: torch cannot compile here \(no compiler\); use stacked"
    ):
        losses_of(settings_of(data, tmp_path / "asked", "model=esmm", "world.towers=compiled"))
    monkeypatch.setattr(build, "kind_of_towers", lambda *_: "compiled")
    found = losses_of(settings_of(data, tmp_path / "auto", "model=esmm"))
    assert "torch cannot compile here (no compiler)" in capsys.readouterr().err
    monkeypatch.undo()
    assert found == losses_of(settings_of(data, tmp_path / "stacked", "model=esmm", "world.towers=stacked"))
