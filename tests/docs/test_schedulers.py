"""The examples for schedulers: they parse, and every job and setting that they name is there. Their packages are not installed here."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.command_line import settings_of
from jobs.evaluate import EvaluateSettings
from pipeline.config.preprocess import PreprocessSettings
from pipeline.config.score import ScoreSettings
from training.run.settings import TrainSettings

FOLDER = Path(__file__).parents[2] / "docs" / "schedulers"
SCHEMAS: dict[str, type[Any]] = {
    "jobs.preprocess": PreprocessSettings,
    "jobs.train": TrainSettings,
    "jobs.evaluate": EvaluateSettings,
    "jobs.score": ScoreSettings,
}


def commands_in(path: Path) -> list[tuple[str, list[str]]]:
    """(job, the keys of the settings behind it) of every call that names a job."""
    found = []
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call):
            arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
            words = [word for one in arguments for word in (one.elts if isinstance(one, ast.Tuple) else [one])]
            texts = [ast.unparse(word).strip("f'\"") for word in words]
            jobs = [text for text in texts if text.startswith("jobs.")]
            keys = [match[1] for text in texts if (match := re.match(r"([a-z_.]+)=", text))]
            found += [(job, keys) for job in jobs]
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_example_compiles_and_names_jobs_and_settings_that_are_there(path: Path) -> None:
    compile(path.read_text(), str(path), "exec")
    commands = commands_in(path)
    assert {job for job, _ in commands} == set(SCHEMAS)
    for job, keys in commands:
        known = {setting.key for setting in settings_of(SCHEMAS[job])}
        assert keys
        assert set(keys) <= known, (job, keys)
