"""The files that a code host reads: forms of issues, and the citation."""

import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", [form for form in FORMS if form.stem != "config"], ids=lambda path: path.stem)
def test_a_form_asks_for_what_a_maintainer_needs(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids)
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_the_citation_is_of_this_version_and_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]["text"]
    assert [paper["url"].rpartition("/")[2] for paper in citation["references"]] == ["1804.07931", "1910.07099"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_format_policy_names_the_versions_that_the_code_reads() -> None:
    from pipeline.dataset import manifest
    from training.checkpoint import meta

    policy = (ROOT / "docs" / "formats.md").read_text()
    assert f"| dataset | `format_version` in manifest.json, now {manifest.FORMAT_VERSION} |" in policy
    assert f"| checkpoint | `format_version` in checkpoint.json, now {meta.FORMAT_VERSION} |" in policy
