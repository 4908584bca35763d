"""The audit: every line read is written or set aside, for each split and reason, or the job stops.

A Tally counts on the way (in tasks, merged on the driver); `balanced` proves the sums and gives audit.json.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.aliccp import parse
from pipeline.aliccp.parse import REASONS
from pipeline.chunks.chunk import Chunk
from pipeline.chunks.sources import CONTEXT, SKELETON, SourceFile
from pipeline.dataset.manifest import SPLITS
from pipeline.storage.parquet_files import NUM_EXAMPLES

#: What a line of each table is called in the audit.
GRAIN = {CONTEXT: "contexts", SKELETON: "impressions"}


@dataclass
class Tally:
    """Counts by (split, grain, what), and where each reason was met first in the order of the log."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[int, int]] = field(default_factory=dict)  # reason → (ordinal, offset)

    def add(self, split: int, grain: str, what: str, number: int) -> None:
        """Count `number` more."""
        if number:
            self.counts[f"{SPLITS[split]}/{grain}/{what}"] += int(number)

    def of(self, split: str, grain: str, what: str) -> int:
        """One count."""
        return self.counts[f"{split}/{grain}/{what}"]

    def note_first(self, reason: str, ordinal: int, offset: int) -> None:
        """Remember a line if none before it has this reason."""
        self.first[reason] = min(self.first.get(reason, (ordinal, offset)), (ordinal, offset))

    def merge(self, other: "Tally") -> None:
        """Add another task's counts."""
        self.counts.update(other.counts)
        for reason, (ordinal, offset) in other.first.items():
            self.note_first(reason, ordinal, offset)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for the way from a task to the driver."""
        return {"counts": dict(self.counts), "first": {reason: list(where) for reason, where in self.first.items()}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Tally":
        """The way back."""
        first = {reason: (ordinal, offset) for reason, (ordinal, offset) in raw["first"].items()}
        return cls(Counter(raw["counts"]), first)

    def count_chunk(self, chunk: Chunk) -> None:
        """Count the lines of a parsed chunk."""
        line_LC, grain = chunk.parsed.line_LC, GRAIN[chunk.source.table]
        reason_L = line_LC[:, parse.REASON]
        is_good_L = reason_L == parse.GOOD
        for reason in np.unique(reason_L).tolist():
            self._count(chunk, grain, reason_L == reason, REASONS[reason] or "good")
        self._count(chunk, grain, is_good_L & (line_LC[:, parse.MISMATCH] == 1), "kept/feature_count_mismatch")
        without_click_L = is_good_L & (line_LC[:, parse.LABELS] == parse.BUY_BIT)
        self._count(chunk, grain, without_click_L, "kept/conversion_without_click")
        for column, what in ((parse.UNKNOWN, "unknown_features"), (parse.REPEATED, "repeated_values")):
            if line_LC[is_good_L, column].any():
                for split in range(len(SPLITS)):
                    self.add(split, grain, what, line_LC[is_good_L & (chunk.split_L == split), column].sum())

    def _count(self, chunk: Chunk, grain: str, chosen_L: np.ndarray, what: str) -> None:
        if not chosen_L.any():
            return
        for split, number in enumerate(np.bincount(chunk.split_L[chosen_L], minlength=len(SPLITS)).tolist()):
            self.add(split, grain, what, number)
        if what != "good":
            where = chunk.offset + int(chunk.parsed.line_LC[int(np.argmax(chosen_L)), parse.START])
            self.note_first(what.removeprefix("kept/"), chunk.source.ordinal, where)


def balanced(
    scanned: Tally,
    written: Tally,
    totals: Mapping[str, Mapping[str, int]],
    quarantine_files: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of audit.json.

    `scanned` counts the lines of the first pass, `written` what grouping made of the good ones, `totals` are the
    manifest's, that is the rows in the files. Raises RuntimeError where a sum does not hold: a bug of ours.
    """
    lines = {split: _lines_of(split, scanned, written, totals.get(split, {})) for split in SPLITS}
    files = sorted(quarantine_files, key=lambda file: str(file["path"]))
    quarantined = dict.fromkeys(REASONS[1:], 0)
    for split in SPLITS:
        for grain in GRAIN.values():
            for reason, number in lines[split][grain]["quarantined"].items():
                quarantined[reason] += number
    if sum(quarantined.values()) != sum(file["lines"] for file in files):
        raise RuntimeError(f"The audit does not balance: {quarantined} set aside, but the quarantine holds {files}.")
    return {
        "lines": lines,
        "quarantined": quarantined,
        "kept": _summed(scanned, ("kept/feature_count_mismatch", "kept/conversion_without_click")),
        "left_out": _summed(scanned, ("unknown_features", "repeated_values")),
        "funnel": {split: {name: n for name, n in total.items() if name != "rows"} for split, total in totals.items()},
        "quarantine": files,
    }


def _lines_of(split: str, scanned: Tally, written: Tally, total: Mapping[str, int]) -> dict[str, Any]:
    """Both equations of one split, grain by grain."""
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


def _summed(tally: Tally, names: Iterable[str]) -> dict[str, dict[str, int]]:
    return {
        split: {
            name.removeprefix("kept/"): sum(tally.of(split, grain, name) for grain in GRAIN.values()) for name in names
        }
        for split in SPLITS
    }


def examples_of(reports: Iterable[Mapping[str, Any]], sources: Sequence[SourceFile]) -> dict[str, list[dict[str, Any]]]:
    """reason → the first lines of the log that were set aside for it, from the reports of the quarantine files."""
    ordinals = {source.name: source.ordinal for source in reversed(sources)}
    found: dict[str, list[tuple[int, int, str, str]]] = {}
    for report in reports:
        for reason, lines in report["examples"].items():
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
