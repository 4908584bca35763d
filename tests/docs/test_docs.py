"""The documentation points at what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_every_linked_line_defines_the_name_in_the_link(page: Path) -> None:
    for text, target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            continue
        file = (page.parent / path).resolve()
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if line := re.fullmatch(r"L(\d+)", anchor):
            name = text.strip("`").split(".")[-1]
            defined = [number for number, code in enumerate(file.read_text().splitlines(), 1) if defines(code, name)]
            assert int(line[1]) in defined, f"{page.name}: {text} stands in {path} at line {defined}, not {line[1]}"


def defines(code: str, name: str) -> bool:
    """Whether a line of code begins the definition of `name`."""
    return re.match(rf"\s*(?:def|class) {re.escape(name)}\b", code) is not None
