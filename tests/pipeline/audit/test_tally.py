"""The audit: counts that merge, and sums that must hold."""

from typing import Any

import pytest

from pipeline.audit.balance import reconcile
from pipeline.audit.tally import Tally
from pipeline.dataset.manifest import SPLITS


def tally(**counts: int) -> Tally:
    found = Tally()
    for name, number in counts.items():
        split, grain, what = name.split("__")
        found.add(SPLITS.index(split), grain, what, number)
    return found


def audit(scanned: Tally, written: Tally, impressions: int, quarantined: int) -> dict[str, Any]:
    files = [{"path": "quarantine/part-00000-0123456789abcdef.parquet", "lines": quarantined}]
    return reconcile(scanned, written, {"train": {"impressions": impressions}}, files)


def test_lines_read_are_written_or_set_aside_for_each_reason() -> None:
    scanned = tally(train__impressions__good=10, train__impressions__bad_label=2, train__contexts__good=5)
    written = tally(
        train__impressions__written=9, train__impressions__missing_context=1, train__contexts__written=3,
        train__contexts__without_impressions=1, train__contexts__duplicate_context=1,
    )  # fmt: skip
    found = audit(scanned, written, 9, 4)
    assert found["lines"]["train"] == {
        "contexts": {"read": 5, "written": 3, "without_impressions": 1, "quarantined": {"duplicate_context": 1}},
        "impressions": {"read": 12, "written": 9, "quarantined": {"bad_label": 2, "missing_context": 1}},
    }
    assert {reason: n for reason, n in found["quarantined"].items() if n} == {
        "bad_label": 2, "missing_context": 1, "duplicate_context": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("good", "in_files", "quarantined"), [(11, 10, 0), (10, 9, 0), (10, 10, 1)])
def test_a_sum_that_does_not_hold_is_an_error_of_ours(good: int, in_files: int, quarantined: int) -> None:
    with pytest.raises(RuntimeError, match="does not balance"):
        audit(tally(train__impressions__good=good), tally(train__impressions__written=10), in_files, quarantined)


def test_tallies_of_tasks_merge_and_remember_the_first_line_of_each_reason() -> None:
    first, second = tally(test__impressions__bad_label=2), tally(test__impressions__bad_label=3)
    first.note_first("bad_label", 2, 10)
    second.note_first("bad_label", 1, 99)
    second.note_first("bad_label", 1, 98)
    first.merge(Tally.from_json(second.to_json()))
    assert first.of("test", "impressions", "bad_label") == 5
    assert first.first == {"bad_label": (1, 98)}
