"""Write docs/settings.md: every setting of every job, from the dataclasses that own the defaults and their comments.

python -m docs.site.settings_page          writes the page
python -m docs.site.settings_page --check  ends with status 1 if the committed page is not what would be written
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from jobs.command_line import Setting, settings_of
from jobs.help_page import comments_of
from jobs.listing import CONF, JOBS, JobEntry, first_sentence_of, groups_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
HEAD = """# Every setting

`python -m docs.site.settings_page` writes this page from the dataclasses that own the defaults. Do not edit it.

Give a setting as `key=value` on the command line of its job: `python -m jobs.train data=DATASET plan.batch_size=1000`.
A setting without a default is marked **required**. `python -m jobs.train --help` prints the same list with the values
that your command line would use. A [file of your own](models.md#files-of-your-own) can hold the settings of a group.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, "## The files of the groups\n", *_groups()]
    described: dict[tuple[str, type[Any]], str] = {}
    for job in JOBS:
        parts += [
            f"## jobs.{job.name}\n\n{job.about}\n\n    entirespace {job.name} {job.example}\n",
            *_job(job, described),
        ]
    return "\n".join(parts)


def _groups() -> Iterator[str]:
    """Yield a table of what each group of conf/ can be set to, with the comment that heads each file."""
    yield "`group=file` takes all settings of a file at once: `model=esm2`, `features=aliccp_numeric`.\n"
    yield "| group | file | what it is |\n|---|---|---|"
    for path in sorted(CONF.glob("*/*.yaml")):
        group, file = path.parent.name, path.stem
        yield f"| `{group}` | [{file}](../conf/{group}/{path.name}) | {_cell(first_sentence_of(path))} |"
    yield ""


def _job(job: JobEntry, described: dict[tuple[str, type[Any]], str]) -> Iterator[str]:
    """Yield the tables of a job: its own settings, then one for each group that no earlier job has shown."""
    comments, chosen = comments_of(job.schema), groups_of(job.name)
    if chosen:
        named = ", ".join(f"`{group}={file}`" if file else f"`{group}`" for group, file in chosen.items())
        yield f"Groups, with the file that is taken where you name none: {named}.\n"
    groups: dict[str, list[Setting]] = {"": []}
    for setting in settings_of(job.schema):
        if not is_dataclass(setting.type):
            groups.setdefault(setting.key.rpartition(".")[0], []).append(setting)
    for group, settings in groups.items():
        if not settings:
            continue
        owner = settings[0].owner
        earlier = described.setdefault((group, owner), job.name)
        if group:
            yield f"### jobs.{job.name}: `{group}`\n"
        if earlier != job.name:
            yield f"The settings of `{group}` are those of [jobs.{earlier}](#jobs{earlier}-{_slug(group)}).\n"
            continue
        yield "| setting | default | what it does |\n|---|---|---|"
        for setting in settings:
            name = f"`{setting.key}`"
            yield f"| {name} | {_default(setting, chosen)} | {_cell(comments.get(setting.key, ''))} |"
        yield ""


def _slug(group: str) -> str:
    return re.sub(r"[^\w\- ]", "", group.lower())


def _default(setting: Setting, chosen: dict[str, str | None]) -> str:
    entry = next(entry for entry in fields(setting.owner) if entry.name == setting.key.rpartition(".")[2])
    value = entry.default
    if entry.default_factory is not NO_DEFAULT:
        value = entry.default_factory()
    if value is NO_DEFAULT or value == MISSING:
        value = _value_of_file(setting, chosen)
    if value == MISSING:
        return "**required**"
    if isinstance(value, dict | list | tuple) and len(str(value)) > 60:
        return f"{len(value)} entries"
    return f"`{_yaml(value)}`".replace("|", "\\|")


def _value_of_file(setting: Setting, chosen: dict[str, str | None]) -> Any:
    """Return the value that the chosen file of the setting's group gives it, MISSING where there is none."""
    group, *names = setting.key.split(".")
    if not chosen.get(group):
        return MISSING
    value = yaml.safe_load((CONF / group / f"{chosen[group]}.yaml").read_text())
    for name in names:
        value = value.get(name, MISSING) if isinstance(value, dict) else MISSING
    return value


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, tuple):
        value = list(value)
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.exit("docs/settings.md is not what the dataclasses say; run python -m docs.site.settings_page")
    else:
        PAGE.write_text(text)
