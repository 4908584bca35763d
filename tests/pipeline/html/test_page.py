"""Pages: hostile text stays text, whichever template shows it, and templates are found wherever the code lies."""

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from pipeline.html.charts import Axis, Series, chart
from pipeline.html.page import _environment, percent, printable_runs, render

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = '<script>alert("\'&")</script>\x00\x1b\u202egnp\u2066\u200b\ufeff\ud800'
#: What may not stand in a page: control characters, bidirectional overrides, characters of no width, half characters.
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def test_hostile_text_cannot_leave_its_place_in_an_element_or_an_attribute() -> None:
    template = _environment().from_string('<p title="{{ text }}">{{ text }}</p>')
    html = template.render(text=HOSTILE)
    assert html.count("<") == 2
    assert html.count('"') == 2
    assert not UNSEEN.search(html)
    assert html.count("\\x00\\x1b\\u202egnp\\u2066\\u200b\\ufeff\\ud800") == 2


def test_no_part_of_a_chart_lets_hostile_text_out() -> None:
    drawn = chart(HOSTILE, HOSTILE, Axis(HOSTILE), Axis(HOSTILE), [Series(HOSTILE, [0, 1], [0, 1])] * 2)
    macro = '{% from "pieces.html.j2" import figures %}{{ figures([chart]) }}'
    html = _environment().from_string(macro).render(chart=drawn)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 7  # title, two descriptions, two axes, two names
    assert not UNSEEN.search(html)


def test_raw_text_marks_what_does_not_print() -> None:
    macro = '{% from "pieces.html.j2" import raw_text %}{{ raw_text(text) }}'
    html = _environment().from_string(macro).render(text="a\x02<\u202e\n é")
    assert html == "a<b>\\x02</b>&lt;<b>\\u202e\\n</b> é"
    assert list(printable_runs("a\x02\x03b")) == [("a", True), ("\\x02\\x03", False), ("b", True)]


def test_a_line_break_in_a_value_stays_one() -> None:
    assert _environment().from_string("<pre>{{ text }}</pre>").render(text="a: 1\nb: 2\n") == "<pre>a: 1\nb: 2\n</pre>"


def test_no_python_code_marks_text_as_safe_html() -> None:
    sources = [path for room in ("pipeline", "training", "jobs") for path in (ROOT / room).rglob("*.py")]
    marking = [path.name for path in sources if re.search(r"Markup\(|html import escape", path.read_text())]
    assert marking == []
    templates = list((ROOT / "pipeline/html").glob("*.j2"))
    assert len(templates) >= 4
    assert [path.name for path in templates if re.search(r"\|\s*safe|autoescape", path.read_text())] == []


def test_a_name_that_the_content_lacks_is_an_error_and_no_gap() -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("layout.html.j2", heading="h", subtitle="s")


def test_templates_are_found_in_a_zip_as_spark_submit_ships_the_code(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        for path in sorted((ROOT / "pipeline").rglob("*")):
            if path.suffix in (".py", ".j2", ".css"):
                archive.write(path, path.relative_to(ROOT))
    code = (
        "import pipeline.html.page as page; assert 'code.zip' in page.__file__, page.__file__; "
        "print(page._environment().get_template('layout.html.j2').render(title='<t>', heading='h', subtitle='s'))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "code.zip")}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    page = done.stdout.decode()
    assert "<title>&lt;t&gt; · entirespace</title>" in page
    assert "prefers-color-scheme: dark" in page


def test_an_installed_package_has_every_template(tmp_path: Path) -> None:
    """The patterns of pyproject's package-data match each file of the folder that is no module."""
    import tomllib

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "pipeline/html"
    shipped = {path for pattern in patterns["pipeline.html"] for path in folder.glob(pattern)}
    assert folder / "sort.js" in shipped
    assert shipped == {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert folder / "style.css" in shipped


def test_a_percentage_has_so_many_significant_digits() -> None:
    assert [percent(0.03891), percent(0.0389123, 4), percent(1.0), percent(0.0)] == [
        "3.89 %",
        "3.891 %",
        "100 %",
        "0 %",
    ]


def test_the_policy_of_a_page_names_its_script_by_hash_and_other_pages_allow_none() -> None:
    content = {"title": "t", "heading": "h", "subtitle": "s"}
    plain, sortable = render("layout.html.j2", **content), render("layout.html.j2", **content, sortable=True)
    assert "script" not in plain
    (script,) = re.findall(r"<script>(.*?)</script>", sortable, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in sortable
    assert not re.search(r"innerHTML|eval|document\.write|fetch|https?:", script)
