"""docs/clusters.md: every line of jobs.submit makes scripts or manifests, and every setting of it is explained there."""

import re
import shlex
from pathlib import Path

import pytest

from jobs.command_line import settings_of
from jobs.entry import compose
from training.submission.manifests import files_of_stage
from training.submission.plan import plan_jobs
from training.submission.settings import SubmitSettings
from training.submission.slurm_scripts import script_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text()
COMMANDS = re.findall(r"^    python -m jobs\.submit ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)


def test_the_page_shows_both_clusters() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"cluster=slurm", "cluster=kubernetes"}
    assert len(COMMANDS) > 3


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_makes_what_it_says(command: str) -> None:
    settings = compose("submit", SubmitSettings, shlex.split(command.replace("\\\n", " ")))
    jobs = plan_jobs(settings)
    assert jobs
    for job in jobs:
        if settings.cluster == "slurm":
            assert script_of(job, settings).startswith("#!")
        else:
            assert files_of_stage(job, job.name, settings)


def test_every_setting_that_the_page_names_is_there_and_the_page_names_every_setting() -> None:
    known = {setting.key for setting in settings_of(SubmitSettings)}
    named = set(re.findall(r"\b((?:environment|slurm|kubernetes|sizes)\.[a-z_]+)\b", PAGE))
    groups = {"environment", "slurm", "kubernetes"}
    leaves = {key for key in known if key.count(".") == 1 and key.split(".")[0] in groups}
    assert named - {"environment.tar"} <= known
    assert not {key for key in leaves if key not in named}, "explain these in docs/clusters.md"
    assert not {key for key in known if "." not in key and key not in groups and not re.search(rf"\b{key}\b", PAGE)}


def test_the_page_names_every_target_of_the_images() -> None:
    targets = re.findall(r"^(image-[a-z-]+|check-image):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) == 5
    assert not [target for target in targets if f"make {target}" not in PAGE]
