"""The site is built without a broken link or anchor, and loads nothing from elsewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]
# What a browser loads by itself; a link that a reader follows may lead anywhere.
LOADED = re.compile(
    r"""<(?:script|img|iframe|link(?![^>]*rel="?canonical))\b[^>]*?\b(?:src|href)="?((?:https?:)?//[^">\s]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out)))  # strict: a warning is an error
    return out


def pages_of(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from pages_of(part)


def test_every_page_of_the_navigation_is_built(site: Path) -> None:
    names = list(pages_of(load_config(str(ROOT / "mkdocs.yml"))["nav"]))
    assert len(names) > 20
    assert [name for name in names if not (site / name).with_suffix(".html").exists()] == []


def test_no_page_loads_a_font_a_script_or_a_picture_from_elsewhere(site: Path) -> None:
    loaded = {found for page in site.rglob("*.html") for found in LOADED.findall(page.read_text())}
    assert loaded == set()
    assert LOADED.findall('<script src="https://cdn.example/x.js"><link href="//fonts.example/y" rel=stylesheet>')


def test_a_link_to_code_opens_a_page_that_shows_it(site: Path) -> None:
    tour = (site / "tour.html").read_text()
    assert 'href="code/pipeline/aliccp/parse.py.html"' in tour
    assert "def" in (site / "code/pipeline/aliccp/parse.py.html").read_text()


def test_a_notebook_is_a_page_with_its_code_and_its_picture(site: Path) -> None:
    page = (site / "examples" / "read_a_report.html").read_text()
    assert "data:image/png;base64," in page
    assert "calibration_in_words" in page
    assert "share of the attainable" in page


def test_a_broken_link_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[nothing](nothing.md) [nowhere](#nowhere)\n")
    settings = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(tmp_path / "docs"), site_dir=str(tmp_path / "site"))
    settings["nav"], settings["hooks"] = None, {}
    settings.plugins.clear()
    with pytest.raises(Abort, match="warnings"):
        build(settings)
