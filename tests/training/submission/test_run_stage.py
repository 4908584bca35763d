"""A stage on its node: noted in the ledger by what it read before it began, and skipped where nothing has changed."""

import json
from pathlib import Path

import pytest

from training.run.stages import LEDGER, Ledger, Stage
from training.submission.run_stage import EXIT_DONE, main, words_of_stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "in put").write_text("1")
    return Stage("train", "jobs.train", ("a=b c", "--config-dir=x"), (str(tmp_path / "in put"),), str(tmp_path / "out"))


def test_a_training_is_noted_with_what_its_inputs_were_when_it_began(stage: Stage, tmp_path: Path) -> None:
    words = words_of_stage(stage, str(tmp_path))
    assert main(["begin", *words]) == 0
    (tmp_path / "out").write_text("model")
    assert main(["end", *words]) == 0
    assert Ledger(tmp_path).is_done(stage)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in put", "out", LEDGER]
    assert main(["begin", *words]) == EXIT_DONE

    (tmp_path / "in put").write_text("2")
    assert main(["begin", *words]) == 0
    (tmp_path / "in put").write_text("3")  # while it trains
    assert main(["end", *words]) == 0
    assert not Ledger(tmp_path).is_done(stage)


def test_a_training_without_a_run_and_an_end_without_a_begin_are_errors(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of_stage(stage, str(tmp_path))
    assert main(["end", *words]) == 2
    assert f"has ended without {stage.output}" in capsys.readouterr().err
    (tmp_path / "out").write_text("model")
    assert main(["end", *words]) == 2
    assert "submit again" in capsys.readouterr().err
    assert not Ledger(tmp_path).is_done(stage)


def test_the_other_stages_run_as_in_a_chain_of_one_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison"
    stage = Stage("compare", "json.tool", (str(tmp_path / "a.json"), str(out)), (str(tmp_path / "a.json"),), str(out))
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    words = words_of_stage(stage, str(tmp_path / "ledger"))
    assert main(["run", *words]) == 0
    assert json.loads(out.read_text()) == {"a": 1}
    assert main(["run", *words]) == 0
    assert "nothing to do" in capfd.readouterr().out
    (tmp_path / "a.json").unlink()
    assert main(["run", *words]) == 2
    assert "error: The stage compare ended with status" in capfd.readouterr().err
