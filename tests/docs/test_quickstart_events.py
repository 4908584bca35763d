"""docs/quickstart-events.md: each of its commands composes, and all of them, run in order, do what the page says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.command_line import parse_words
from jobs.entry import compose
from jobs.evaluate import EvaluateSettings
from jobs.inspect import InspectSettings
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import SPLITS, load_manifest
from pipeline.simulate.run import SimulateSettings
from training.run.settings import TrainSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/quickstart-events.md").read_text()
SCHEMAS = {
    "simulate": SimulateSettings,
    "preprocess": PreprocessSettings,
    "inspect": InspectSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
}
COMMANDS = [line.strip() for line in re.findall(r"^    (?! ).*$", re.sub(r"```.*?```", "", PAGE, flags=re.S), re.M)]
JOBS = [command for command in COMMANDS if command.startswith("python -m jobs.")]
FILES = re.findall(r"```(?:python|yaml)\n# (?:new file: )?(\S+)\n(.*?)```", PAGE, re.S)


def test_the_page_has_commands_and_files() -> None:
    assert len(JOBS) == 9
    assert [name for name, _ in FILES] == ["my_shop.py", "mine/source/my_shop.yaml", "mine/features/my_shop.yaml"]


@pytest.mark.parametrize("command", JOBS)
def test_every_command_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    job, *words = shlex.split(command)[2:]
    parsed = parse_words(words)
    job = job.removeprefix("jobs.")
    assert compose(job, SCHEMAS[job], parsed.overrides, parsed.config_dir)


def test_the_settings_of_the_other_shop_answer_every_line_of_the_simulated_ones() -> None:
    """A line that is left out would take its default, and the reader would not learn of it."""
    for (_, text), name in zip(FILES[1:], ("source", "features"), strict=True):
        mine, ours = yaml.safe_load(text), yaml.safe_load((ROOT / f"conf/{name}/simulated_shop.yaml").read_text())
        if name == "source":
            assert set(ours["events"]) <= set(mine["events"])
            for table in ("impressions", "actions"):
                assert set(ours["events"][table]) == set(mine["events"][table])
        else:
            assert set(mine["fields"]) == {field for field in ours["fields"] if field[:5] != "user_"} | {"user_id"}


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.timeout(1200)
def test_the_whole_page_runs_as_it_stands_and_both_shops_give_the_same_labels(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    bin_of_python = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_of_python}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment["PYSPARK_PYTHON"] = sys.executable
    for command in COMMANDS:
        if command.startswith("python -m pip"):
            continue  # make install-dev has done so
        if command == "python my_shop.py":
            write_files(tmp_path)
        ended = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
        if "out=DATASET" in command:
            for line in re.search(r"```\n(train: .*?)```", PAGE, re.S).group(1).splitlines():  # type: ignore[union-attr]
                assert line in ended.stdout
    first, second = (load_manifest(tmp_path / name) for name in ("DATASET", "MY-DATASET"))
    assert first.totals == second.totals
    metrics = json.loads((tmp_path / "RUN/metrics.json").read_text())
    assert metrics["ctr_auc"] > 0.55
    assert metrics["ctcvr_auc"] > 0.55
    assert metrics["true_ctcvr_auc"] > metrics["ctcvr_auc"]
    bandit = load_manifest(tmp_path / "BANDIT-DATASET").totals
    assert [(bandit[split]["impressions"], bandit[split]["clicks"]) for split in SPLITS] == [
        (7_189, 28), (1_379, 7), (1_432, 11),
    ]  # fmt: skip


def write_files(folder: Path) -> None:
    for name, text in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
