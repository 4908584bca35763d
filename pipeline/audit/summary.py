"""What jobs.preprocess prints about the dataset that it wrote."""

from pipeline.audit.leakage import leak_warnings
from pipeline.dataset.manifest import SPLITS, Manifest
from pipeline.storage.commit import AUDIT_PAGE, read_audit
from pipeline.storage.store import store_of

_TOTALS = ("rows", "impressions", "clicks", "dactions", "conversions")


def summarize(manifest: Manifest) -> str:
    """Sum up a dataset in a line for each split and one for the quarantined lines."""
    lines = [
        f"{split}: "
        + ", ".join(f"{manifest.totals[split][name]:,} {name}" for name in _TOTALS if name in manifest.totals[split])
        for split in SPLITS
        if split in manifest.totals
    ]
    quarantined = {reason: number for reason, number in manifest.audit["quarantined"].items() if number}
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in quarantined.items())
    return "\n".join([*lines, f"quarantined: {reasons or 'nothing'}"])


def audit_warnings(out: str) -> list[str]:
    """List the fields that audit.json suspects of leakage; warn if audit.json is not of this dataset."""
    audit, doubt = read_audit(store_of(out))
    leaks = leak_warnings(audit["leakage"]) if "leakage" in audit else []  # a dataset of an earlier release has none
    found = [f"{warning} {out}/{AUDIT_PAGE} has the other fields." for warning in leaks]
    return [*found, *([doubt] if doubt else [])]
