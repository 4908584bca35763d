"""What is wrong or doubtful about a log: the alerts at the head of audit.html, each with the section that shows it.

leak          a field alone predicts a label too well (pipeline.audit.leakage)
doubts        of an event log as a whole (pipeline.events.doubts)
quarantine    a hundredth of the lines or more was rejected
outcomes      fewer than half of the actions of a kind were attributed to an impression
immature      a tenth of the impressions or more waits for actions
drift         the values of a field have shifted from train's: PSI of 0.25 or more, or a mean that moved half a σ
positives     a split has fewer than a hundred positives of a label
"""

from collections.abc import Iterator, Sequence

from pipeline.audit.event_outcomes import event_warnings
from pipeline.audit.leakage import leak_warnings
from pipeline.audit.tables import SHIFTED, Audit
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import LABELS, Manifest
from pipeline.errors import printable
from pipeline.html.alert import BAD, FAIR, FEW_POSITIVES, PageAlert

#: From which share of the lines on quarantine is an alert, and from which share of impressions on an open window is.
_MOST_QUARANTINED, _OPEN_WINDOWS = 0.01, 0.1
#: Below which share of attributed actions.
_LEAST_ATTRIBUTED = 0.5
#: Of train's standard deviations, that the mean of numbers moved.
_MOVED = 0.5
#: A field of many rare ids differs from its own vocabulary by chance: validation, of train's time, shows by how much.
_BEYOND_CHANCE = 2.0
_MOST_NAMED = 6


def audit_alerts(audit: Audit, manifest: Manifest, splits: Sequence[str]) -> list[PageAlert]:
    """List the alerts, the most serious kinds first."""
    found = [PageAlert(BAD, warning, "fields") for warning in leak_warnings(audit["leakage"])]
    found += [PageAlert(BAD, doubt, "outcomes") for doubt in event_warnings(audit.get("events", {}))]
    found += _quarantine_alerts(audit)
    found += _event_alerts(audit)
    found += _drift_alerts(audit, manifest, splits)
    found += _positive_alerts(audit, splits)
    return found


def _quarantine_alerts(audit: Audit) -> Iterator[PageAlert]:
    counts = {reason: number for reason, number in audit["quarantined"].items() if number}
    read = sum(table["read"] for lines in audit["lines"].values() for table in lines.values())
    total = sum(counts.values())
    if read and total / read >= _MOST_QUARANTINED:
        most = max(counts, key=lambda reason: counts[reason])
        text = (
            f"{total:,} of {read:,} lines are in quarantine ({total / read:.1%}), {counts[most]:,} of them as "
            f"{printable(most)}."
        )
        yield PageAlert(BAD, text, "quarantine")


def _event_alerts(audit: Audit) -> Iterator[PageAlert]:
    events = audit.get("events", {})
    for kind, outcomes in events.get("actions", {}).get("outcomes", {}).items():
        number, attributed = sum(outcomes.values()), outcomes.get("attributed", 0)
        if number and attributed / number < _LEAST_ATTRIBUTED:
            reason = max((name for name in outcomes if name != "attributed"), key=lambda name: outcomes[name])
            text = (
                f"{attributed:,} of {number:,} actions {printable(kind)} are attributed to an impression "
                f"({attributed / number:.0%}); most others are {reason.replace('_', ' ')}."
            )
            yield PageAlert(FAIR, text, "actions")
    impressions = events.get("impressions", {})
    immature, read = sum(impressions.get("immature", {}).values()), impressions.get("read", 0)
    if read and immature / read >= _OPEN_WINDOWS:
        text = f"The attribution window of {immature:,} of {read:,} impressions is still open ({immature / read:.0%})."
        yield PageAlert(FAIR, text, "outcomes")


def _drift_alerts(audit: Audit, manifest: Manifest, splits: Sequence[str]) -> Iterator[PageAlert]:
    if "train" not in splits:
        return
    is_timed = "events" in audit  # then validation is later than train, and is no measure of chance
    for split in splits:
        if split == "train" or (split == "validation" and not is_timed and "test" in splits):
            continue
        shifted = []
        for field in manifest.fields:
            number = audit["drift"][field.name].get(split)
            if number is None:
                continue
            by_chance = 0.0 if is_timed or split == "validation" else audit["drift"][field.name].get("validation", 0.0)
            if field.stored == INDEX and number >= max(SHIFTED, _BEYOND_CHANCE * by_chance):
                shifted.append((abs(number), f"{field.name} (PSI {number:.2f})"))
            elif field.stored != INDEX and abs(number) >= _MOVED:
                shifted.append((abs(number), f"{field.name} (mean {number:+.2f} σ)"))
        if shifted:
            names = [name for _, name in sorted(shifted, reverse=True)]
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            text = f"Drift: in {split} these have shifted from train: {', '.join(names[:_MOST_NAMED])}{more}."
            yield PageAlert(FAIR, text, "fields")


def _positive_alerts(audit: Audit, splits: Sequence[str]) -> Iterator[PageAlert]:
    for label in LABELS:
        few = {
            split: number
            for split in splits
            if (number := audit["funnel"][split].get(f"{label}s", FEW_POSITIVES)) < FEW_POSITIVES
        }
        if few:
            counts = ", ".join(f"{number:,} in {split}" for split, number in few.items())
            text = f"Few {label}s: {counts}. Their rates and AUCs are uncertain there."
            yield PageAlert(FAIR, text, "funnel")
