"""What jobs.preprocess prints about the dataset that it wrote."""

from pipeline.audit.event_outcomes import event_lines, event_warnings
from pipeline.audit.leakage import leak_warnings
from pipeline.dataset.manifest import SPLITS, Manifest
from pipeline.errors import printable
from pipeline.storage.commit import AUDIT_PAGE, audit_figures, read_audit
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
    return "\n".join([*lines, quarantined_line(manifest), *_day_by_day_lines(manifest)])


def three_numbers(manifest: Manifest) -> list[str]:
    """Return the numbers to look at first: impressions, their click rate, and the quarantined lines."""
    totals = manifest.totals.values()
    impressions, clicks = (sum(total[name] for total in totals) for name in ("impressions", "clicks"))
    quarantined = sum(manifest.audit.get("quarantined", {}).values())
    rate = f"{clicks / impressions:.2%} clicked" if impressions else "none clicked"
    return [f"{impressions:,} impressions", rate, f"{quarantined:,} lines quarantined"]


def _day_by_day_lines(manifest: Manifest) -> list[str]:
    """Say what a job with source.events.day_by_day has taken from its base, and left to the next one."""
    span = manifest.audit.get("events", {}).get("day_by_day")
    if not span:
        return []
    return [
        f"day by day: {span['from_base']:,} rows that the base had left, {span['left']:,} left to the next job, "
        f"{span['earlier']:,} earlier ones passed over"
    ]


def quarantined_line(manifest: Manifest) -> str:
    """Say how many lines of each reason are in quarantine."""
    counts = manifest.audit.get("quarantined", {})
    reasons = ", ".join(f"{number:,} {printable(reason)}" for reason, number in counts.items() if number)
    return f"quarantined: {reasons or 'nothing'}"


def audit_lines(out: str) -> list[str]:
    """Say what became of the rows of an event log; nothing of another one."""
    store = store_of(out)
    audit, _ = read_audit(store)
    with audit_figures(store):
        return event_lines(audit["events"]) if "events" in audit else []


def audit_warnings(out: str) -> list[str]:
    """List the doubts about an event log and the fields suspected of leakage; warn if audit.json is not of this dataset."""
    store = store_of(out)
    audit, doubt = read_audit(store)
    with audit_figures(store):
        leaks = (
            leak_warnings(audit["leakage"]) if "leakage" in audit else []
        )  # a dataset of an earlier release has none
        doubts = event_warnings(audit.get("events", {}))
    found = [f"{warning} {out}/{AUDIT_PAGE} has the other fields." for warning in leaks]
    return [*doubts, *found, *([doubt] if doubt else [])]
