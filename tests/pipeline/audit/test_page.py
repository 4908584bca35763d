"""audit.html: what it says is what audit.json says, and nothing of a log can leave its place in it."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import CHROMIUM, after_script, assert_nothing_overflows, dom_of, overflow_of
from event_log import ACTIONS, IMPRESSIONS, action, impression, written
from raw_log import random_log

from pipeline.audit.page import audit_page
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import load_manifest
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
HTML = Path(__file__).parents[3] / "pipeline" / "html"
POLICY = '<meta http-equiv="Content-Security-Policy" content="x">'
ATTACK = b'<script>alert("&")</script>,1,205\x02\x03\xe2\x80\xae\xff'


class Text(HTMLParser):
    """The text of a page, its tags, and whether each was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {name for name, _ in attrs} & {"src", "onload", "onclick"}
        self.ids |= {value or "" for name, value in attrs if name == "id"}
        self.links |= {value or "" for name, value in attrs if name == "href"}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def audited(
    spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings
) -> tuple[Path, Path]:
    """A raw log with dirt and an attack in it, and its dataset."""
    root = tmp_path_factory.mktemp("audited")
    log = random_log(4)
    log.lines["common_features_train"].insert(0, ATTACK)
    raw = log.write(root / "raw")
    preprocess(preprocess_settings(raw, root / "out"))
    return raw, root / "out"


def test_the_page_is_one_file_without_reference_and_shows_the_counts(audited: tuple[Path, Path]) -> None:
    _, out = audited
    page = Text((out / "audit.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert not {"img", "link", "iframe"} & set(page.tags)
    assert {link.removeprefix("#") for link in page.links} <= page.ids  # within the page, and each leads somewhere
    assert len(page.links) > 4
    text = " ".join(page.words)
    audit = json.loads((out / "audit.json").read_text())
    for split, total in audit["funnel"].items():
        assert split in text
        for number in total.values():
            assert f"{number:,}" in text
    for reason, number in audit["quarantined"].items():
        if number:
            assert re.search(rf"{reason}: \d of {number:,}", text)
    for name in audit["fields"]:
        assert name in text


def test_a_line_of_the_log_is_shown_as_text_whatever_it_holds(audited: tuple[Path, Path]) -> None:
    _, out = audited
    page = (out / "audit.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # the one of the package, which the policy of the page names by its hash
    assert f"<script>{(HTML / 'sort.js').read_text().rstrip()}</script>" in page
    assert "&lt;script&gt;alert(&#34;&amp;&#34;)" in page
    assert ",1,205<b>\\x02\\x03\\u202e</b>\\xff</code>" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)


@pytest.mark.usefixtures("spark")
def test_the_page_of_an_event_log_explains_its_rows_actions_and_splits(
    tmp_path: Path, preprocess_settings: Settings, audited: tuple[Path, Path]
) -> None:
    hostile = impression(10, 3, "<i>", 31, "v7", categories__weight=[1.0])
    later = [impression(9, 38, "bob", 31, "v6"), hostile]
    # The log ends at 112 h, and the windows are 73 h long: what was shown at 40 h is immature.
    actions = [row for row in ACTIONS if row["user_id"] != "eve"] + [action(112, "eve", 1, "click")]
    overrides = written(tmp_path / "raw", "jsonl", IMPRESSIONS + later, actions)
    preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    html = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    page = Text(html)
    assert page.open == []
    text = " ".join(" ".join(page.words).split())
    assert "Of 11 rows read, 1 lie outside the splits. The attribution window of 2 is still open (immature)" in text
    assert "Of 8 rows read, 0 are malformed, 1 have a name that makes no label, and 0 lie after the end" in text
    (actions_table,) = re.findall("<h2>Actions</h2>.*?</table>", html, re.DOTALL)
    assert re.findall(r"<th scope=.col.>(\w*)</th>", actions_table) == ["", "attributed", "no_click", "no_impression"]
    assert re.search(
        r"click</th><td>3</td><td>.*–.*</td><td>1<small>user .*eve.*, item .*1.*</small></td></tr>", actions_table
    )
    assert "wish</th>" in actions_table
    assert "impressions, offset 0" in text
    assert "&#34;user_id&#34;:&#34;&lt;i&gt;&#34;" in html
    ali_ccp = (audited[1] / "audit.html").read_text(encoding="utf-8")
    for words in (
        "as its file does",
        "Validation is of train's time",
        "a hash of its key decides",
        "each with its file",
    ):
        assert words in " ".join(ali_ccp.split())
        assert words not in text
    assert "<h2>Actions" not in ali_ccp


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser_nothing_overflows_and_a_heading_sorts(audited: tuple[Path, Path], tmp_path: Path) -> None:
    page = audited[1] / "audit.html"
    assert_nothing_overflows(page, tmp_path)
    shutil.copy(page, tmp_path / "audit.html")
    assert '<th scope="col" tabindex="0">' in dom_of(tmp_path / "audit.html")  # the policy lets the page's script run
    names = [field.name for field in load_manifest(audited[1]).fields]

    def shown(clicks: str) -> list[str]:
        dom = after_script(page, tmp_path, f"const heads = document.querySelectorAll('.sortable thead th'); {clicks}")
        (table,) = re.findall(r'<table class="data sortable">.*?</table>', dom, re.DOTALL)
        return re.findall(r'<th scope="row">(\w+)<small>', table)

    assert sorted(shown("")) == sorted(names)
    assert shown("heads[0].click()") == sorted(names)
    assert shown("heads[0].click(); heads[0].click()") == sorted(names, reverse=True)
    num_rows = {field.name: field.num_rows for field in load_manifest(audited[1]).fields}
    by_rows = [num_rows[name] for name in shown("heads[2].dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))")]
    assert by_rows == sorted(num_rows.values(), reverse=True)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_what_overflows_a_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    wide = "<p style='white-space:nowrap'>" + "wide " * 100 + "</p>"
    page.write_text(f"<head>{POLICY}</head><body><div class='scroll' style='overflow-x:auto'>{wide}</div></body>")
    assert_nothing_overflows(page, tmp_path)
    page.write_text(f"<head>{POLICY}</head><body>{wide}</body>")
    assert overflow_of(page, tmp_path)[390][0] > 1000
    page.write_text(f"<head>{POLICY}</head><body><div style='overflow:hidden'>{wide}</div></body>")
    assert overflow_of(page, tmp_path)[390][1][0].startswith("DIV wide")


def test_three_examples_of_each_reason_are_the_first_lines_of_the_log_that_have_it(audited: tuple[Path, Path]) -> None:
    raw, out = audited
    audit = json.loads((out / "audit.json").read_text())
    sources = [source["name"] for source in json.loads((out / "manifest.json").read_text())["sources"]]
    for reason, found in audit["examples"].items():
        assert len(found) == min(3, audit["quarantined"][reason])
        places = [(sources.index(example["source"]), example["offset"]) for example in found]
        assert places == sorted(places)
        for example in found:
            line = (raw / example["source"]).read_bytes()[example["offset"] :].split(b"\n", 1)[0]
            shown = line[:400].decode("utf-8", "backslashreplace")
            assert example["line"] == shown + ("…" if len(line) > 400 else "")
    assert audit["examples"]["bad_context_key"][0]["line"] == ATTACK.decode("utf-8", "backslashreplace")


def test_another_run_writes_the_same_audit_and_page(
    audited: tuple[Path, Path], tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw, out = audited
    manifest = preprocess(preprocess_settings(raw, tmp_path / "again", "source.split_bytes=5000"))
    for name in ("audit.json", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name
    pages = {place: (place / "audit.html").read_text() for place in (out, tmp_path / "again")}
    facts = {place: re.search("<dl class=.facts.>.*?</dl>", page, re.DOTALL)[0] for place, page in pages.items()}
    assert str(out) in facts[out]
    assert str(tmp_path / "again") in facts[tmp_path / "again"]
    assert all(f"<dt>raw log</dt><dd>{raw}</dd>" in found for found in facts.values())
    assert all(re.search(r"<dd>\d{4}-\d\d-\d\d \d\d:\d\d UTC, in ", found) for found in facts.values())
    rendered = audit_page(json.loads((out / "audit.json").read_text()), manifest)
    facts[None] = re.search("<dl class=.facts.>.*?</dl>", rendered, re.DOTALL)[0]
    assert len({page.replace(facts[place], "") for place, page in [*pages.items(), (None, rendered)]}) == 1


def test_a_named_leak_stands_at_the_head_of_the_page(audited: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = audited
    audit = json.loads((out / "audit.json").read_text())
    audit["leakage"]["auc"]["position"] = {"click": {"auc": 0.999, "error": 0.001, "by": "weights"}}
    audit["leakage"]["named"] = [{"field": "position", "label": "click"}]
    page = audit_page(audit, load_manifest(out))
    assert page.index("position alone predicts click with an AUC of 0.999 (by its weights)") < page.index("<h2>Funnel")


def test_contexts_count_once_however_they_are_cut_and_numbers_have_a_table(
    audited: tuple[Path, Path], tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw, _ = audited
    weight = "+features.fields.affinity={raw_id: '508', scope: impression, kind: numeric}"
    audits = []
    for name, most in (("whole", 1000), ("pieces", 8)):
        overrides = [weight, f"rows.max_impressions={most}"]
        preprocess(preprocess_settings(raw, tmp_path / name, *overrides))
        audits.append(json.loads((tmp_path / name / "audit.json").read_text()))
    for key in ("lines", "funnel", "contexts", "fields", "drift", "overlap", "examples", "quarantined"):
        assert audits[0][key] == audits[1][key], key
    found = audits[0]["fields"]["affinity"]["train"]
    assert found["records"] == found["without"] + found["values"] == audits[0]["funnel"]["train"]["impressions"]
    page = (tmp_path / "whole" / "audit.html").read_text(encoding="utf-8")
    assert re.search(rf"affinity <small>train</small></th><td>{found['mean']:.5g}</td>", page)
