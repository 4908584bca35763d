"""Every command of the pages that starts a job names a job and settings that are there, and composes where it is complete."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.command_line import parse_words, settings_of
from jobs.entry import compose
from jobs.listing import JOBS, job_named

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
JOB = re.compile(r"(?:-m jobs\.|^\s*entirespace )(\w+)")  # `entirespace --help` starts no job


def commands_of(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (job, the words behind it) of each command in the code blocks of a page."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:bash|shell|console)?\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"(?:^    (?! *[-*] ).*\n)+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    for block in blocks:
        for line in re.sub(r"\\\n\s*", " ", block).split("\n"):
            found = JOB.search(line)
            if found:
                yield found[1], line[found.end() :].split("  #")[0].split("&&")[0].strip()


#: A command that several pages show is tried once.
FIRST_PAGE = {command: page.name for page in reversed(PAGES) for command in commands_of(page)}
COMMANDS = [(page, job, words) for (job, words), page in FIRST_PAGE.items()]


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 60
    assert {job for _, job, _ in COMMANDS} >= {
        "simulate",
        "preprocess",
        "train",
        "evaluate",
        "compare",
        "score",
        "export",
    }


@pytest.mark.parametrize(("page", "job", "words"), COMMANDS, ids=lambda value: re.sub(r"[^\w=./ -]", "", value)[:40])
def test_a_command_names_a_job_and_settings_that_are_there(page: str, job: str, words: str) -> None:
    assert job in {entry.name for entry in JOBS}
    schema = job_named(job).schema
    parsed = parse_words([word for word in shlex.split(words) if word not in ("…", "--help")])
    known = {setting.key for setting in settings_of(schema)}
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    for word in parsed.overrides:
        key = word.partition("=")[0].lstrip("+~")
        parents = {key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)}
        assert key in known | groups or parents & known, f"{page}: {word} is no setting of jobs.{job}"
    if "…" not in words and parsed.config_dir is None and parsed.overrides:
        assert compose(job, schema, parsed.overrides)
