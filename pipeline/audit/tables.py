"""The tables of audit.html that go field by field, and the one of ids in two splits; every cell is HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.dataset.manifest import LABELS, Manifest, ManifestField
from pipeline.html.frame import note, percent, table

Audit = Mapping[str, Any]

NONE = '<span class="none">–</span>'
_DRIFTING = 6  # fields whose distribution is drawn
_STABLE, _SHIFTED = 0.1, 0.25  # the usual readings of the population stability index


def values(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> str:
    """How many values the contexts or impressions have of each field, and how many have none."""
    rows = []
    for field in fields:
        every = [audit["fields"][field.name][split] for split in splits]
        records, values = sum(found["records"] for found in every), sum(found["values"] for found in every)
        mean = f"{values / records:.3g}" if field.arity == "many" and records else NONE
        most = f"{max(found.get('most', 1) for found in every):,}" if field.arity == "many" else NONE
        without = [percent(found["without"] / found["records"]) for found in every]
        rows.append([escape(field.name), field.scope, mean, most, *without])
    head = ["", "of each", "mean values", "most", *(f"without, {split}" for split in splits)]
    return table(head, rows) + note("The share of contexts or impressions that have no value of the field.")


def numbers(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> str:
    """Mean, deviation and range of numeric fields, and how far the mean is from train's."""
    rows = []
    for field in fields:
        for split in splits:
            found = audit["fields"][field.name][split]
            shown = [f"{found[name]:.5g}" if name in found else NONE for name in ("mean", "std", "min", "max")]
            shift = audit["drift"][field.name].get(split)
            rows.append(
                [f"{escape(field.name)} <small>{split}</small>", *shown, NONE if shift is None else f"{shift:+.3f}"]
            )
    return table(["", "mean", "standard deviation", "least", "greatest", "mean moved by, in σ of train"], rows)


def coverage(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> str:
    """The share of values that have no row of their own in the field's table."""
    rows = []
    for field in fields:
        if field.hash_buckets:
            continue  # every value has a bucket
        cells = []
        for split in splits:
            found = audit["fields"][field.name][split]
            share = found["out_of_vocabulary"] / found["values"] if found["values"] else 0.0
            cells.append(f"{100 * share:.2f} %" if found["values"] else NONE)
        rows.append([escape(field.name), f"{field.num_rows:,}", *cells])
    return table(["", "rows", *splits], rows) + note(
        "The rows of the field's table, and the share of values whose id has none of its own. In train these are ids below the minimum count; elsewhere also "
        "ids that train does not have. Validation is of train's time, so what test has more than validation came with time."
    )


def drift(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> str:
    """The stability index of each field against train, the highest first."""
    others = [split for split in splits if split != "train"]
    if "train" not in splits or not others:
        return "<p>There is only one split.</p>"

    def cell(index: float) -> str:
        kind = "bad" if index >= _SHIFTED else "fair" if index >= _STABLE else "good"
        return f'<span class="{kind}">{index:.3f}</span>'

    by_test = sorted(fields, key=lambda field: -max(audit["drift"][field.name][split] for split in others))
    rows = [[escape(field.name), *(cell(audit["drift"][field.name][split]) for split in others)] for field in by_test]
    return table(["", *(f"{split} against train" for split in others)], rows) + note(
        "The population stability index over missing, out of vocabulary, and ranges of the index that double "
        f"(frequent ids first): below {_STABLE} is usually called stable, above {_SHIFTED} shifted. Validation shows what chance "
        "and the vocabulary alone do to a field of many rare ids; only what test has beyond it is change over time."
    )


def drifting(audit: Audit, fields: Sequence[ManifestField]) -> list[str]:
    """The fields that moved most, in whichever split."""
    moved = {field.name: max(audit["drift"][field.name].values(), default=0.0) for field in fields}
    return sorted(moved, key=lambda name: -moved[name])[:_DRIFTING]


def overlap(audit: Audit, splits: Sequence[str], manifest: Manifest) -> str:
    """Distinct users and contexts of each split on the diagonal, those common to two beside it."""

    def shown(count: Mapping[str, Any]) -> str:
        return f"{count['number']:,}" if count["exact"] else f"≈ {count['number']:,}"

    rows = []
    for what in ("users", "contexts"):
        found = audit["overlap"][what]
        for split in splits:
            cells = [
                shown(found["distinct"][split]) if other == split else shown(_common(found["common"], split, other))
                for other in splits
            ]
            rows.append([f"{what} of {split}", *cells])
    local = "the keys of Ali-CCP are local to a file, so a key in train and in test need not be one context; "
    return table(["", *(f"also in {split}" for split in splits)], rows) + note(
        "Distinct ones. No context is in train and in validation, for a hash of its key decides; "
        + (
            local
            if manifest.settings["source"]["name"] == "aliccp"
            else "one in two splits began before their boundary; "
        )
        + "a user may well be in several splits. Counts up to 32,768 are exact, ≈ has a standard error of 0.6 % of all."
    )


def _common(common: Mapping[str, Any], one: str, other: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = common.get(f"{one} {other}") or common[f"{other} {one}"]
    return found


def leakage(audit: Audit, fields: Sequence[ManifestField]) -> str:
    """The AUC of each field alone for each label, the highest first."""
    found = audit["leakage"]
    known = [label for label in LABELS if label in found["labels"]]
    labels = [label for label in known if found["labels"][label]["judged"]]
    if not labels:
        return "<p>Too few impressions with a label and without it to judge any field.</p>"
    named = {(pair["field"], pair["label"]) for pair in found["named"]}

    def cell(name: str, label: str) -> str:
        numbers = found["auc"][name][label]
        kind = "bad" if (name, label) in named else ""
        by = "" if numbers["by"] == "values" else f"<em>by its {numbers['by']}</em>"
        return f'{by}<span class="{kind}">{numbers["auc"]:.3f}</span>'

    def best(field: ManifestField) -> float:
        return -float(max(found["auc"][field.name][label]["auc"] for label in labels))

    rows = [[escape(field.name), *(cell(field.name, label) for label in labels)] for field in sorted(fields, key=best)]
    asked = {label: label if label == "click" else f"{label} after a click" for label in labels}
    error = {label: max(found["auc"][field.name][label]["error"] for field in fields) for label in labels}
    skipped = [label for label in known if label not in labels]
    return table(["AUC of one field", *(f"{asked[label]}, ± {error[label]:.3f}" for label in labels)], rows) + note(
        f"Rates learned on {found['sample']['learned']:,} impressions of train, scored on {found['sample']['scored']:,} of "
        f"{found['sample']['scored_on']}: by the values of a field, how many there are, the loudest of them or their weights, "
        f"whichever tells most; a missing value is a value. A field is named from {found['threshold']} on, well above the rest. "
        + (f"Too few of {' and '.join(skipped)} to judge." if skipped else "")
    )
