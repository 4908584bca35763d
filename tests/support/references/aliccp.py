"""A slow, independent reading of a raw Ali-CCP log in plain Python: what the byte kernel and the whole chain must equal.

Written from DESIGN §3 with string functions only, one line at a time; of pipeline/ it uses only the names of
fields and reasons.
"""

import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.features.fields import Catalogue

_INTEGER = re.compile(rb"[0-9]+\Z")
_SIGNED = re.compile(rb"-?[0-9]+\Z")
_KEY = re.compile(rb"[0-9a-f]{16}\Z")
_FLOAT = re.compile(rb"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")


@dataclass
class Line:
    """One raw line as read: `values` are (raw name, id, weight) of the known fields, in the order of the log."""

    offset: int
    raw: bytes
    reason: str = ""
    key: str | None = None
    sample_id: int = 0
    click: int = 0
    buy: int = 0
    mismatch: bool = False
    unknown: int = 0
    repeated: int = 0
    values: list[tuple[str, int, float]] = field(default_factory=list)


def lines_of(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield Yield (offset, line without its line feed); a last line without a line feed counts."""
    offset = 0
    while offset < len(text):
        end = text.find(b"\n", offset)
        end = len(text) if end < 0 else end
        yield offset, text[offset:end]
        offset = end + 1


def read_line(
    offset: int, raw: bytes, is_skeleton: bool, arity_of: Mapping[str, str], needs_labels: bool = True
) -> Line:
    """Read `raw` by the rules of docs/dataset.md; `arity_of` maps the raw names of the scope to "one" or "many"."""
    line = Line(offset, raw)
    text = raw[:-1] if raw.endswith(b"\r") else raw
    columns = text.split(b",")
    if is_skeleton and not needs_labels:
        if len(columns) == 4:
            columns[1:1] = [b"0", b"0"]
        elif len(columns) == 6:
            columns[1:3] = [b"0" if column == b"" else column for column in columns[1:3]]
    if len(columns) != (6 if is_skeleton else 3):
        line.reason = "malformed_line"
        return line
    key, count, features = columns[-3:]
    if not _fits(count, _INTEGER) or (is_skeleton and not _fits(columns[0], _SIGNED)):
        line.reason = "malformed_line"
        return line
    if _KEY.match(key):
        line.key = key.decode()
    if is_skeleton and not (columns[1] in (b"0", b"1") and columns[2] in (b"0", b"1")):
        line.reason = "bad_label"
    elif line.key is None:
        line.reason = "bad_context_key"
    elif not _read_features(line, features, int(count), arity_of):
        line.reason, line.values, line.unknown, line.repeated, line.mismatch = "bad_feature", [], 0, 0, False
    elif is_skeleton:
        line.sample_id, line.click, line.buy = int(columns[0]), int(columns[1]), int(columns[2])
    return line


def _read_features(line: Line, features: bytes, count: int, arity_of: Mapping[str, str]) -> bool:
    parts = features.split(b"\x01") if features else []
    for part in parts:
        match = re.match(rb"([^\x01\x02\x03]+)\x02([^\x01\x02\x03]*)\x03([^\x01\x02\x03]*)\Z", part, re.DOTALL)
        if not match:
            return False
        name, raw_id, weight = match.groups()
        if not _fits(raw_id, _INTEGER) or not _FLOAT.match(weight):
            return False
        with np.errstate(over="ignore"):
            value = float(np.float32(float(weight)))
        if not np.isfinite(value):
            return False
        arity = arity_of.get(name.decode("latin-1"))
        if arity is None:
            line.unknown += 1
        elif arity == "one" and any(seen == name.decode("latin-1") for seen, _, _ in line.values):
            line.repeated += 1
        else:
            line.values.append((name.decode("latin-1"), int(raw_id), value))
    line.mismatch = count != len(parts)
    return True


def _fits(text: bytes, pattern: re.Pattern[bytes]) -> bool:
    # Python refuses to convert thousands of digits.
    return bool(pattern.match(text)) and len(text.lstrip(b"-0")) < 20 and abs(int(text)) < 2**63


@dataclass
class Rejected:
    """A rejected line."""

    source: str
    offset: int
    reason: str
    raw: bytes


@dataclass
class Period:
    """The lines of one period: contexts by key with their impressions in the order of the log, and rejected lines."""

    contexts: dict[str, Line] = field(default_factory=dict)
    impressions: dict[str, list[Line]] = field(default_factory=dict)
    parsed: list[Line] = field(default_factory=list)  # every line that could be read, whatever became of it
    rejected: list[Rejected] = field(default_factory=list)
    num_lines: dict[str, int] = field(default_factory=dict)  # table → lines read
    ids: dict[str, set[int]] = field(default_factory=dict)  # context, or "" for anywhere → impression ids that stay

    def rows(self) -> dict[str, list[Line]]:
        """Return the impressions of each context that has any."""
        return {key: self.impressions[key] for key in self.contexts if self.impressions.get(key)}


def read_period(directory: Path, period: str, catalogue: Catalogue, checks: Mapping[str, str]) -> Period:
    """Read one period of the log below `directory`; `checks` as in the settings, but for fail."""
    found = Period()
    for table, scope in (("common_features", "context"), ("sample_skeleton", "impression")):
        # A number behind the ids of another field is no feature of its own.
        entries = sorted(catalogue.of_scope(scope), key=lambda entry: not entry.reads_numbers)
        arity_of = {entry.raw_id: entry.arity for entry in entries}
        found.num_lines[table] = 0
        for name, text in _files(directory, f"{table}_{period}"):
            for offset, raw in lines_of(text):
                found.num_lines[table] += 1
                line = read_line(offset, raw, scope == "impression", arity_of)
                if not line.reason:
                    line.reason = _overlooked(line, checks)
                if not line.reason:
                    found.parsed.append(line)
                    line.reason = _place(found, line, scope, checks["duplicates"] == "global")
                if line.reason:
                    found.rejected.append(Rejected(name, offset, line.reason, raw))
    return found


def _overlooked(line: Line, checks: Mapping[str, str]) -> str:
    """Return the reason of a defect that a policy does not keep."""
    if line.mismatch and checks["feature_count_mismatch"] != "keep":
        return "feature_count_mismatch"
    if line.buy and not line.click and checks["conversion_without_click"] != "keep":
        return "conversion_without_click"
    return ""


def _place(found: Period, line: Line, scope: str, anywhere: bool) -> str:
    """Put a line under its context; return the reason if it is rejected."""
    assert line.key is not None
    if scope == "context":
        return "" if found.contexts.setdefault(line.key, line) is line else "duplicate_context"
    if line.key not in found.contexts:
        return "missing_context"
    ids = found.ids.setdefault("" if anywhere else line.key, set())
    if line.sample_id in ids:
        return "duplicate_impression"
    ids.add(line.sample_id)
    found.impressions.setdefault(line.key, []).append(line)
    return ""


def _files(directory: Path, stem: str) -> Iterator[tuple[str, bytes]]:
    if (directory / stem).is_dir():
        for part in sorted((directory / stem).iterdir()):
            text = part.read_bytes()
            yield f"{stem}/{part.name}", gzip.decompress(text) if part.suffix == ".gz" else text
    elif (directory / f"{stem}.csv.gz").exists():
        yield f"{stem}.csv.gz", gzip.decompress((directory / f"{stem}.csv.gz").read_bytes())
    else:
        yield f"{stem}.csv", (directory / f"{stem}.csv").read_bytes()


def is_validation(key: str, fraction: float, seed: int) -> bool:
    """Decide whether a train context is for validation: splitmix64's finalizer of the salted key is below the fraction."""
    return splitmix64((int(key, 16) + (2 * seed + 1) * 0xD1B54A32D192ED03) % 2**64) < int(fraction * 2**64)


def splitmix64(word: int) -> int:
    """Compute the 64-bit finalizer of splitmix64."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)
