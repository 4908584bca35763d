"""jobs.preprocess sums a dataset up from its manifest, and warns of leaks from its audit."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.audit import summary
from pipeline.audit.summary import audit_warnings, summarize
from pipeline.dataset.manifest import Manifest


class Totals:
    """The two parts of a manifest that the summary reads."""

    def __init__(self, totals: dict[str, Any], quarantined: dict[str, int]) -> None:
        self.totals = totals
        self.audit: dict[str, Any] = {"quarantined": quarantined}


def test_a_summary_has_a_line_for_each_split_and_one_for_the_quarantined_lines() -> None:
    test = {"conversions": 1, "impressions": 12345, "rows": 67, "clicks": 89}
    manifest = cast(Manifest, Totals({"test": test, "train": {"rows": 2}}, {"bad_label": 1200, "bad_feature": 0}))
    assert summarize(manifest).splitlines() == [
        "train: 2 rows",
        "test: 67 rows, 12,345 impressions, 89 clicks, 1 conversions",
        "quarantined: 1,200 bad_label",
    ]
    assert summarize(cast(Manifest, Totals({}, {"bad_label": 0}))) == "quarantined: nothing"


def test_a_leak_is_warned_of_with_the_page_that_has_the_other_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path)
    assert audit_warnings(out) == []  # no audit, or one of an earlier release
    (tmp_path / "audit.json").write_text(json.dumps({"leakage": {"any": "thing"}}))
    monkeypatch.setattr(summary, "leak_warnings", lambda leakage: [f"A leak in {leakage['any']}."])
    assert audit_warnings(out) == [f"A leak in thing. {out}/audit.html has the other fields."]


def test_a_summary_of_a_day_says_what_the_base_had_left_and_what_is_left_again() -> None:
    totals = Totals({}, {})
    totals.audit["events"] = {"day_by_day": {"from_base": 1200, "left": 34, "earlier": 5}}
    assert summarize(cast(Manifest, totals)).splitlines()[1:] == [
        "day by day: 1,200 rows that the base had left, 34 left to the next job, 5 earlier ones passed over"
    ]
