"""A slow reading of one row of an event log in plain Python, from docs/events.md: its defect, or its ids, time and features.

A row is column → text, a list of texts, or None. Beside it the rows themselves: random ones with values of every bad kind,
written as Parquet, JSON lines or CSV.
"""

import csv
import json
import random
import re
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

Row = dict[str, Any]

COLUMNS = ("user", "item", "at", "id", "view", "clk", "city", "cats", "cats__weight", "tags")
LISTS = ("cats", "cats__weight", "tags")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Reading:
    """The values of a row; without a user where it is malformed."""

    status: str  # "" or the reason
    user: str | None = None
    item: str | None = None
    at: int = 0  # milliseconds
    id: int | None = None
    context: int | None = None
    clicked: bool = False
    features: tuple[Any, ...] = ()  # city, item, cats, their weights, tags


def read_row(row: Row, window_ms: int | None) -> Reading:
    """Read a row by the rules of docs/events.md. With `window_ms` its context is a window of time, and its id is made."""
    texts = {name: None if value == "" else value for name, value in row.items()}
    at = milliseconds(texts["at"])
    user, item, own_id, view = (texts[name] for name in ("user", "item", "id", "view"))
    if window_ms and at is not None and user is not None and item is not None:
        view = f"{user}\x1f{at - at % window_ms}"
        own_id = f"{user}\x1f{item}\x1f{view}\x1f{at}"
    if at is None or user is None or item is None or own_id is None:
        return Reading("malformed_line")
    cats, weights, tags = (texts[name] or [] for name in LISTS)
    numbers = [float32(weight) for weight in weights]
    flag = (texts["clk"] or "").lower()
    if flag not in ("0", "1", "0.0", "1.0", "true", "false"):
        status = "bad_label"
    elif view is None:
        status = "bad_context_key"
    elif any(value in (None, "") for value in cats + tags) or None in numbers or len(numbers) != len(cats):
        status = "bad_feature"
    else:
        status = ""
    ids = [[raw_id(value) for value in values] for values in (cats, tags)] if not status else [[], []]
    features = (raw_id(texts["city"]), raw_id(item), ids[0], numbers, ids[1]) if not status else ()
    clicked = flag in ("1", "1.0", "true")
    return Reading(status, user, item, at, raw_id(own_id), raw_id(view), clicked, features)


def raw_id(text: str | None) -> int | None:
    """Return the id that a text stands for."""
    if text is None:
        return None
    if re.fullmatch("0|[1-9][0-9]*", text, re.ASCII) and int(text) < 2**63:
        return int(text)
    return xxhash.xxh64(text.encode(), seed=42).intdigest() & (2**63 - 1)


def milliseconds(text: str | None) -> int | None:
    """Parse a time in seconds, rounded down to milliseconds; None where it is none."""
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    number = Decimal(text.strip())
    if abs(number) >= 10**24:
        return None
    found = int((number.quantize(Decimal("1e-6"), ROUND_HALF_UP) * 1000).to_integral_value(ROUND_FLOOR))
    return found if 0 <= found < 253_402_300_800_000 else None  # the year 10000


def float32(text: str | None) -> float | None:
    """Parse a finite weight, or return None."""
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    with np.errstate(over="ignore"):
        value = float(np.float32(float(text)))
    return value if np.isfinite(value) else None


IDS = ("0", "7", "42", "007", "-4", "4.0", "1e3", " 5", "5 ", "x", "ünï", "a b", 'say "hi"', "a,b", "NULL", "9223372036854775807", "9223372036854775808", "12345678901234567890")  # fmt: skip
TIMES = ("", "soon", "-9223372036854775", "-5", "-0.001", "nan", "99999999999999999999999999", "1_0", "0x10", "5 s", "9223372036854775", "9223372036854776", "253402300799.9999", "253402300800")  # fmt: skip
WEIGHTS = (
    "0.5",
    "-2.5",
    "1e-3",
    "16777217",
    "1e38",
    ".5",
    "5.",
    "",
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "1e39",
    "x",
    "1 2",
)


def random_row(draw: random.Random, number: int) -> Row:
    """Draw an impression at a time of its own; every third row has a bad value in one or two columns."""
    cats = [str(draw.randrange(9)) for _ in range(draw.randrange(4))]
    row: Row = {
        "user": f"u{draw.randrange(8)}", "item": str(draw.randrange(4)), "at": f"{number % 100}.{number:04}", "id": str(draw.randrange(300)),
        "view": draw.choice(("v1", "v2", "17", "18", "19", "007")), "clk": draw.choice(("0", "0", "1")), "city": draw.choice((None, "Oslo", "5")),
        "cats": cats, "cats__weight": [draw.choice(WEIGHTS[:7]) for _ in cats], "tags": [draw.choice(IDS) for _ in range(draw.randrange(3))],
    }  # fmt: skip
    for _ in range(draw.choice((0, 0, 0, 0, 1, 2))):
        name = draw.choice(COLUMNS)
        if name in LISTS:
            values = list(row[name] or [])
            pool = WEIGHTS if name == "cats__weight" else (*IDS, "")
            values.insert(draw.randrange(len(values) + 1), draw.choice(pool))
            row[name] = draw.choice((values, values[1:], None, []))
        else:
            row[name] = draw.choice(
                {"at": TIMES, "clk": ("", "2", "true", "false", "True", "1.0", "-1")}.get(name, ("", *IDS))
            )
    return row


def write_rows(path: Path, form: str, rows: list[Row], lists: tuple[str, ...] = LISTS) -> list[Row]:
    """Write rows of texts; return them as the format can express them: CSV has no difference between none and empty."""
    if form == "parquet":
        types = {name: pa.list_(pa.string()) if name in lists else pa.string() for name in rows[0]}
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(types.items())), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {name: "|".join(value) if isinstance(value, list) else value for name, value in row.items()}
                for row in rows
            )
        rows = [{name: _written_list(row[name]) if name in lists else row[name] for name in row} for row in rows]
    return rows


def _written_list(values: list[str] | None) -> list[str] | None:
    """What CSV keeps of a list: an empty text at its end is not written, and of nothing but one, nothing is."""
    return None if values in (None, [""]) else [*"|".join(values).removesuffix("|").split("|")] if values else values


class _Number(str):
    """A number of JSON, as it is written."""


def row_of(line: bytes) -> Row | None:
    """Parse a line of JSON by docs/events.md; None where it cannot be parsed."""
    try:
        values = json.loads(line.decode(), parse_int=_Number, parse_float=_Number, parse_constant=_Number)
        values = {name: values.get(name) for name in COLUMNS}
        for name in LISTS:
            if isinstance(value := values[name], str | bool):
                values[name] = None if value == "" else _as_text(value).removesuffix("|").split("|")
        row = {
            name: [_as_text(entry) for entry in value] if name in LISTS and isinstance(value, list) else _as_text(value)
            for name, value in values.items()
        }
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, AttributeError):
        return None
    return row


def _as_text(value: Any) -> str | None:
    if isinstance(value, list | dict):
        raise ValueError("one value is needed")
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


SNIPPETS = (b"[", b"]", b"{", b"}", b'"', b",", b":", b"null", b"NaN", b"-1e5", b"0", b"true", b"[]", b"{}", b"\\u0000", b"\\ud800", b"\\", b"\xff", b" ", b"|", b"\xc3\xbc", b'"7"', b'{"a": [1]}')  # fmt: skip


def mutated(draw: random.Random, line: bytes, other: bytes) -> bytes:
    """Mutate a line: change a value, a span or its frame, or join it with another line."""
    values = list(re.finditer(rb': ("[^"]*"|\[[^\]]*\]|null)', line))
    begin, end = sorted(draw.choices(range(len(line) + 1), k=2))
    end = min(end, begin + 9)
    if values and draw.random() < 0.4:
        begin, end = draw.choice(values).span(1)
    changed = [
        line[:begin] + draw.choice(SNIPPETS) + line[end:],
        line[:begin] + line[end:],
        line[:end] + line[begin:end] + line[end:],
        b"[" + line + b"]",
        b"[" + line + b", " + other + b"]",
        line + draw.choice((*SNIPPETS, b", ")) + other,
        line + draw.choice(SNIPPETS),
        draw.choice(SNIPPETS),
    ]
    return draw.choice(changed[:3] * 3 + changed)
