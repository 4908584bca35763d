"""A slow, independent reading of a raw Ali-CCP log in plain Python: what the byte kernel and the whole chain must equal.

Written from DESIGN §3 with string functions only, one line at a time; it shares no code with pipeline/ but the names of
the reasons.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

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
    """(offset, line without its line feed) of each line; a last line without a line feed counts."""
    offset = 0
    while offset < len(text):
        end = text.find(b"\n", offset)
        end = len(text) if end < 0 else end
        yield offset, text[offset:end]
        offset = end + 1


def read_line(offset: int, raw: bytes, is_skeleton: bool, arity_of: Mapping[str, str]) -> Line:
    """`raw` read by the rules of docs/dataset.md; `arity_of` maps the raw names of the scope to "one" or "many"."""
    line = Line(offset, raw)
    text = raw[:-1] if raw.endswith(b"\r") else raw
    columns = text.split(b",")
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
    return bool(pattern.match(text)) and abs(int(text)) < 2**63
