"""Prove that every line of the log is accounted for, and give the audit its counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.audit.tally import GRAIN, Tally
from pipeline.chunks.reasons import NEWER_REASONS, REASONS
from pipeline.chunks.sources import SourceFile
from pipeline.dataset.manifest import SPLITS
from pipeline.storage.parquet_files import NUM_EXAMPLES, Examples


def reconcile(
    scanned: Tally,
    written: Tally,
    totals: Mapping[str, Mapping[str, int]],
    quarantine_files: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Check the sums, and return the content of audit.json.

    `scanned` counts the lines of the first pass, `written` the results of grouping the good ones. `totals` are the
    manifest's: the rows in the files. Raises RuntimeError if a sum does not hold, which is a bug of ours.
    """
    lines = {split: _lines_of(split, scanned, written, totals.get(split, {})) for split in SPLITS}
    files = sorted(quarantine_files, key=lambda file: str(file["path"]))
    quarantined = dict.fromkeys(REASONS[1:], 0)
    for split in SPLITS:
        for grain in GRAIN.values():
            for reason, number in lines[split][grain]["quarantined"].items():
                quarantined[reason] += number
    if sum(quarantined.values()) != sum(file["lines"] for file in files):
        raise RuntimeError(f"The audit does not balance: {quarantined} quarantined, but the quarantine holds {files}.")
    return {
        "lines": lines,
        "quarantined": {
            reason: number for reason, number in quarantined.items() if number or reason not in NEWER_REASONS
        },
        "kept": _sum_by_split(scanned, ("kept/feature_count_mismatch", "kept/conversion_without_click")),
        "left_out": _sum_by_split(scanned, ("unknown_features", "repeated_values")),
        "funnel": {split: {name: n for name, n in total.items() if name != "rows"} for split, total in totals.items()},
        "quarantine": files,
    }


def _lines_of(split: str, scanned: Tally, written: Tally, total: Mapping[str, int]) -> dict[str, Any]:
    """Check both equations of one split, contexts and impressions apart; return their terms."""
    found: dict[str, Any] = {}
    for grain in GRAIN.values():
        early = {reason: scanned.of(split, grain, reason) for reason in REASONS[1:]}
        late = {reason: written.of(split, grain, reason) for reason in REASONS[1:]}
        quarantined = {reason: early[reason] + late[reason] for reason in REASONS[1:] if early[reason] + late[reason]}
        read = scanned.of(split, grain, "good") + sum(early.values())
        kept = {"written": written.of(split, grain, "written")}
        if grain == "contexts":
            kept["without_impressions"] = written.of(split, grain, "without_impressions")
        elif kept["written"] != total.get("impressions", 0):
            raise RuntimeError(
                f"The audit of {split} does not balance: {kept} impressions against {dict(total)} in the files."
            )
        if read != sum(kept.values()) + sum(quarantined.values()):
            raise RuntimeError(f"The audit of {split} {grain} does not balance: {read} read, {kept}, {quarantined}.")
        found[grain] = {"read": read, **kept, "quarantined": quarantined}
    return found


def _sum_by_split(tally: Tally, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Sum each count over contexts and impressions: split → name → number."""
    return {
        split: {
            name.removeprefix("kept/"): sum(tally.of(split, grain, name) for grain in GRAIN.values()) for name in names
        }
        for split in SPLITS
    }


def examples_of(files: Iterable[Examples], sources: Sequence[SourceFile]) -> dict[str, list[dict[str, Any]]]:
    """Return reason → the first lines of the log rejected for it, from the examples of the quarantine files."""
    ordinals = {source.name: source.ordinal for source in reversed(sources)}
    found: dict[str, list[tuple[int, int, str, str]]] = {}
    for examples in files:
        for reason, lines in examples.items():
            found.setdefault(reason, []).extend(
                (ordinals[source], offset, source, line) for source, offset, line in lines
            )
    return {
        reason: [
            {"source": source, "offset": offset, "line": line}
            for _, offset, source, line in sorted(lines)[:NUM_EXAMPLES]
        ]
        for reason, lines in sorted(found.items())
    }
