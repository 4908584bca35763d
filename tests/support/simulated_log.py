"""A slow reading of a simulated log: its lines with their offsets, and what is wrong with each, found by hand.

Import it as `from simulated_log import fault, read_lines` (pytest puts tests/ on the path).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Line:
    offset: int
    columns: list[str]

    def features(self) -> Iterator[tuple[str, int, float]]:
        for feature in self.columns[-1].split("\x01"):
            field, _, tail = feature.partition("\x02")
            number, _, value = tail.partition("\x03")
            if not math.isfinite(float(value)):
                raise ValueError(value)
            yield field, int(number), float(value)


def read_lines(path: Path) -> list[Line]:
    lines, offset = [], 0
    for raw in path.read_bytes().splitlines(keepends=True):
        assert raw.endswith(b"\n")
        lines.append(Line(offset, raw[:-1].decode("ascii").split(",")))
        offset += len(raw)
    return lines


def fault(line: Line, num_columns: int) -> str | None:
    """Find what is wrong with a line by itself, slowly and without the simulator."""
    *head, key, num_features, _ = line.columns if len(line.columns) == num_columns else ["", "", "", "", "", ""]
    if len(line.columns) != num_columns or (head and not head[0].isdigit()):
        return "malformed_line"
    if any(label not in ("0", "1") for label in head[1:]):
        return "bad_label"
    if len(key) != 16 or set(key) - set("0123456789abcdef"):
        return "bad_context_key"
    try:
        features = list(line.features())
    except ValueError:
        return "bad_feature"
    if head[1:] == ["0", "1"]:
        return "conversion_without_click"
    return None if len(features) == int(num_features) else "feature_count_mismatch"
