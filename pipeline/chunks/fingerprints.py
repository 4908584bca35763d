"""Fingerprints of input splits: every pass over the log has to find the lines that the first pass found.

A file that changes while the job runs would otherwise make a mixture: ids counted in one state, rows of another.
"""

from collections.abc import Iterable, Sequence

from pipeline.chunks.chunk import Chunk
from pipeline.chunks.sources import SourceFile
from pipeline.errors import InputError

_NUM_FINGERPRINTS = 1 << 64


class SplitFingerprints:
    """The fingerprints of the input splits that were read: (ordinal of the file, start of the split) → sum of its lines'."""

    def __init__(self, found: Iterable[Sequence[int]] = ()) -> None:
        self.by_split = {(ordinal, start): fingerprint for ordinal, start, fingerprint in found}

    def add(self, chunk: Chunk) -> None:
        """Add the lines of a chunk."""
        self._add(chunk.source.ordinal, chunk.split_start, chunk.fingerprint)

    def merge(self, found: Iterable[Sequence[int]]) -> None:
        """Add what `to_rows` returned in a task."""
        for row in found:
            self._add(*row)

    def to_rows(self) -> list[tuple[int, int, int]]:
        """Return (ordinal, start, fingerprint) of each split."""
        return [(*split, fingerprint) for split, fingerprint in self.by_split.items()]

    def of_file(self, ordinal: int) -> str:
        """Return the fingerprint of a whole file, as the manifest has it."""
        of_splits = (fingerprint for (of, _), fingerprint in self.by_split.items() if of == ordinal)
        return text_of_fingerprint(sum(of_splits))

    def compare(self, expected: "SplitFingerprints", sources: Sequence[SourceFile]) -> None:
        """Raise InputError if a split that was read here is not what the first pass read."""
        for (ordinal, start), fingerprint in self.by_split.items():
            if expected.by_split.get((ordinal, start)) != fingerprint:
                raise InputError(has_changed(sources[ordinal]))

    def _add(self, ordinal: int, start: int, fingerprint: int) -> None:
        before = self.by_split.get((ordinal, start), 0)
        self.by_split[ordinal, start] = (before + fingerprint) % _NUM_FINGERPRINTS


def text_of_fingerprint(total: int) -> str:
    """Return a sum of fingerprints as 16 hex digits."""
    return f"{total % _NUM_FINGERPRINTS:016x}"


def has_changed(source: SourceFile) -> str:
    """Return the error message for a file that is not what it was."""
    return (
        f"{source.path} changed while the job read it, so nothing was written; "
        "run again once nothing writes to it any more."
    )
