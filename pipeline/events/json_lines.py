"""Parse JSON lines in tasks, a row a line: lines → the needed columns as texts and lists of texts.

Spark's own reader of JSON does not serve. It makes no row of `[]`, several rows of an array of objects, and one row of
two objects without a line end between them, so the audit could not reconcile the lines. It also takes a list for an id.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.events.tables import MANY, ONE

_BLANK = b" \t\r\n"
_TYPES = {ONE: pa.string(), MANY: pa.list_(pa.string())}


@dataclass(frozen=True)
class LineParser:
    """The task: lines → rows. A line is one JSON object in UTF-8; if a key stands twice, its last value counts."""

    columns: Mapping[str, str]  # name, or path such as user.id → ONE or MANY values
    separator: str  # between the values of a text, where many are needed
    nulls: tuple[str, ...]

    def parse(self, lines: Iterable[bytes]) -> tuple[list[pa.Array], pa.Array]:
        """Return (the columns, the rejected lines; null of the others), one row per line that is not blank."""
        # A number stays the text that it is: 12345678.0 is an id, too.
        decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).decode
        readers = [(_getter(name), _text_of_value if of == ONE else self._texts) for name, of in self.columns.items()]
        rows: list[list[Any]] = []
        rejected: list[bytes | None] = []
        for line in lines:
            if not line.strip(_BLANK):
                continue
            try:
                row = decode(line.decode())
                if type(row) is not dict:
                    raise TypeError("no object")
                if b"\\ud" in line or b"\\uD" in line:
                    json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
                rows.append([read(get(row)) for get, read in readers])
                rejected.append(None)
            except (ValueError, TypeError, RecursionError):
                rows.append([None] * len(readers))
                rejected.append(line)
        columns = zip(*rows, strict=True) if rows else [()] * len(readers)
        arrays = [pa.array(column, _TYPES[of]) for column, of in zip(columns, self.columns.values(), strict=True)]
        return arrays, pa.array(rejected, pa.binary())

    def _texts(self, value: Any) -> list[str | None] | None:
        """Return the texts of a list, or of one text with separators; TypeError where one is a list or an object."""
        if type(value) is list:
            return [_text_of_value(entry) for entry in value]
        text = _text_of_value(value)
        return (
            None if text is None or text in self.nulls else [*text.removesuffix(self.separator).split(self.separator)]
        )


def _text_of_value(value: Any) -> str | None:
    """Return the text of one value (a number is text already); TypeError for a list or an object."""
    if value is None or type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    raise TypeError("no value of its own")


def _getter(name: str) -> Callable[[dict[str, Any]], Any]:
    """Return what gets a value of a row: of its key, or of the keys of objects within objects where there is no such key."""
    head, *below = name.split(".")
    if not below:
        return lambda row: row.get(name)

    def get(row: dict[str, Any]) -> Any:
        if name in row:
            return row[name]
        value: Any = row.get(head)
        for key in below:
            value = value.get(key) if type(value) is dict else None
        return value

    return get
