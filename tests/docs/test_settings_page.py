"""docs/settings.md is what the dataclasses say."""

from dataclasses import is_dataclass

import pytest

from docs.site.settings_page import PAGE, page
from jobs.command_line import settings_of
from jobs.listing import JOBS, JobEntry


def test_the_committed_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text() == page(), "run python -m docs.site.settings_page"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_setting_has_a_line(job: JobEntry) -> None:
    text = PAGE.read_text()
    assert f"\n## jobs.{job.name}\n" in text
    for setting in settings_of(job.schema):
        assert is_dataclass(setting.type) or f"\n| `{setting.key}` | " in text
