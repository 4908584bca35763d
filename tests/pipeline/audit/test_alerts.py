"""The alerts at the head of audit.html: each appears where its threshold is reached, and leads to a section of the page."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from raw_log import random_log

from pipeline.audit.alerts import audit_alerts
from pipeline.audit.page import audit_page
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import SPLITS, Manifest, load_manifest
from pipeline.preprocess import preprocess

Audit = dict[str, Any]


@pytest.fixture(scope="module")
def clean(
    spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Callable[..., PreprocessSettings]
) -> tuple[Audit, Manifest]:
    """An audit and its manifest, made free of alerts."""
    root = tmp_path_factory.mktemp("alerts")
    weight = "+features.fields.affinity={raw_id: '508', scope: impression, kind: numeric}"
    preprocess(preprocess_settings(random_log(4).write(root / "raw"), root / "out", weight))
    audit, manifest = json.loads((root / "out" / "audit.json").read_text()), load_manifest(root / "out")
    audit["quarantined"] = dict.fromkeys(audit["quarantined"], 0)
    audit["drift"] = {name: dict.fromkeys(found, 0.01) for name, found in audit["drift"].items()}
    audit["leakage"]["named"] = []
    for counts in audit["funnel"].values():
        counts |= dict.fromkeys(counts, 1000)
    return audit, manifest


def texts(audit: Audit, manifest: Manifest) -> list[tuple[str, str]]:
    splits = [split for split in SPLITS if split in manifest.totals]
    page = audit_page(audit, manifest)
    found = audit_alerts(audit, manifest, splits)
    for alert in found:
        assert f'id="{alert.section}"' in page
        assert f'<a href="#{alert.section}">' in page
    assert (f"<h2>{len(found)} alert{'' if len(found) == 1 else 's'}</h2>" in page) == bool(found)
    assert ("No alert: " in page) == (not found)
    return [(alert.text, alert.section) for alert in found]


def test_a_log_without_doubt_has_no_alert(clean: tuple[Audit, Manifest]) -> None:
    assert texts(*clean) == []


def test_a_hundredth_of_the_lines_in_quarantine_is_an_alert(clean: tuple[Audit, Manifest]) -> None:
    audit, manifest = copy.deepcopy(clean[0]), clean[1]
    read = sum(table["read"] for lines in audit["lines"].values() for table in lines.values())
    audit["quarantined"]["bad_label"] = -(-read // 100)
    ((text, section),) = texts(audit, manifest)
    assert (section, text.startswith(f"{-(-read // 100):,} of {read:,} lines are in quarantine (1")) == (
        "quarantine",
        True,
    )
    assert text.endswith("of them as bad_label.")
    audit["quarantined"]["bad_label"] = read // 100 - 1
    assert texts(audit, manifest) == []


def test_drift_beyond_that_of_validation_is_an_alert(clean: tuple[Audit, Manifest]) -> None:
    audit, manifest = copy.deepcopy(clean[0]), clean[1]
    audit["drift"]["item_id"] = {"validation": 0.2, "test": 0.39}  # less than twice what chance alone does
    audit["drift"]["affinity"] = {"validation": 0.0, "test": -0.49}
    assert texts(audit, manifest) == []
    audit["drift"]["item_id"]["test"] = 0.4
    audit["drift"]["affinity"]["test"] = -0.5
    ((text, section),) = texts(audit, manifest)
    assert text == "Drift: in test these have shifted from train: affinity (mean -0.50 σ), item_id (PSI 0.40)."
    assert section == "fields"


def test_a_drift_of_many_fields_names_six(clean: tuple[Audit, Manifest]) -> None:
    audit, manifest = copy.deepcopy(clean[0]), clean[1]
    names = [field.name for field in manifest.fields if field.name != "affinity"][:8]
    for number, name in enumerate(names):
        audit["drift"][name]["test"] = 1.0 + number
    ((text, _),) = texts(audit, manifest)
    assert [name for name in names if name in re.findall(r"(\w+) \(", text)] == names[2:]
    assert text.endswith(" and 2 more.")


def test_few_positives_are_an_alert_by_split(clean: tuple[Audit, Manifest]) -> None:
    audit, manifest = copy.deepcopy(clean[0]), clean[1]
    audit["funnel"]["validation"]["conversions"] = 99
    audit["funnel"]["test"]["conversions"] = 100
    ((text, section),) = texts(audit, manifest)
    assert (text, section) == (
        "Few conversions: 99 in validation. Their rates and AUCs are uncertain there.", "funnel",
    )  # fmt: skip


def test_actions_without_an_impression_and_open_windows_are_alerts(clean: tuple[Audit, Manifest]) -> None:
    from pipeline.audit.alerts import _event_alerts

    outcomes = {"click": {"attributed": 49, "no_impression": 40, "outside_window": 11}, "purchase": {"attributed": 5}}
    impressions = {"read": 1000, "immature": {"train": 0, "test": 100}}
    found = list(_event_alerts({"events": {"actions": {"outcomes": outcomes}, "impressions": impressions}}))
    assert [(alert.text, alert.section) for alert in found] == [
        ("49 of 100 actions click are attributed to an impression (49%); most others are no impression.", "actions"),
        ("The attribution window of 100 of 1,000 impressions is still open (10%).", "outcomes"),
    ]
    outcomes["click"] |= {"attributed": 51}
    impressions["immature"]["test"] = 99
    assert list(_event_alerts({"events": {"actions": {"outcomes": outcomes}, "impressions": impressions}})) == []
