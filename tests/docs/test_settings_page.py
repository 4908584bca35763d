"""docs/settings.md is what the dataclasses say."""

import importlib
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from docs.site.settings_page import PAGE, SCHEMAS, page
from jobs.command_line import settings_of

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text() == page(), "run python -m docs.site.settings_page"


def test_every_job_with_settings_is_there() -> None:
    assert set(SCHEMAS) == {path.stem for path in (ROOT / "conf").glob("*.yaml")}


@pytest.mark.parametrize("job", SCHEMAS)
def test_every_setting_has_a_line(job: str) -> None:
    module, name = SCHEMAS[job].split(":")
    text = PAGE.read_text()
    for setting in settings_of(getattr(importlib.import_module(module), name)):
        assert is_dataclass(setting.type) or f"\n| `{setting.key}` | " in text
