"""The counter of the audit: every line read is written or quarantined, for each split and reason, or the job stops.

Tasks count in a Tally and the driver merges them; balance.py proves the sums and gives audit.json.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.chunks import line_columns, reasons
from pipeline.chunks.chunk import Chunk
from pipeline.chunks.reasons import REASONS
from pipeline.chunks.sources import CONTEXT, SKELETON
from pipeline.dataset.manifest import SPLITS

#: The audit's name for the lines of each table.
GRAIN = {CONTEXT: "contexts", SKELETON: "impressions"}


@dataclass
class Tally:
    """Counts by (split, grain, what), and the first line of each reason in the order of the log."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[int, int]] = field(default_factory=dict)  # reason → (ordinal, offset)

    def add(self, split: int, grain: str, what: str, number: int) -> None:
        """Count `number` more."""
        if number:
            self.counts[f"{SPLITS[split]}/{grain}/{what}"] += int(number)

    def of(self, split: str, grain: str, what: str) -> int:
        """Return one count."""
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
        """Return plain JSON, for the way from a task to the driver."""
        return {"counts": dict(self.counts), "first": {reason: list(where) for reason, where in self.first.items()}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Tally":
        """Read what `to_json` returned."""
        first = {reason: (ordinal, offset) for reason, (ordinal, offset) in raw["first"].items()}
        return cls(Counter(raw["counts"]), first)

    def count_chunk(self, chunk: Chunk) -> None:
        """Count the lines of a parsed chunk."""
        line_table, grain = chunk.parsed.line_table, GRAIN[chunk.source.table]
        reason_L = line_table[:, line_columns.REASON]
        is_good_L = reason_L == reasons.GOOD
        for reason in np.unique(reason_L).tolist():
            self._count(chunk, grain, reason_L == reason, REASONS[reason] or "good")
        self._count(
            chunk, grain, is_good_L & (line_table[:, line_columns.MISMATCH] == 1), "kept/feature_count_mismatch"
        )
        without_click_L = is_good_L & (line_table[:, line_columns.LABEL_FLAGS] == line_columns.BUY_BIT)
        self._count(chunk, grain, without_click_L, "kept/conversion_without_click")
        for column, what in ((line_columns.UNKNOWN, "unknown_features"), (line_columns.REPEATED, "repeated_values")):
            if line_table[is_good_L, column].any():
                for split in range(len(SPLITS)):
                    self.add(split, grain, what, line_table[is_good_L & (chunk.split_L == split), column].sum())

    def _count(self, chunk: Chunk, grain: str, chosen_L: np.ndarray, what: str) -> None:
        if not chosen_L.any():
            return
        for split, number in enumerate(np.bincount(chunk.split_L[chosen_L], minlength=len(SPLITS)).tolist()):
            self.add(split, grain, what, number)
        if what != "good":
            where = chunk.offset + int(chunk.parsed.line_table[int(np.argmax(chosen_L)), line_columns.START])
            self.note_first(what.removeprefix("kept/"), chunk.source.ordinal, where)
