"""JSON that another process wrote: parsed strictly, before anything is believed of it."""

import collections
import json
import math
from typing import Any

from pipeline.errors import InputError, printable, reason_of

_MOST_INT = 2**63 - 1


def parse_json(text: str | bytes, where: str, remedy: str) -> Any:
    """Parse the JSON `text`, read from `where`.

    Raises InputError, which ends with `remedy`, for what is no JSON in UTF-8, for a key twice in one object, NaN,
    Infinity, a number beyond int64 or float64, half of a surrogate pair, and nesting beyond Python's stack.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        found = json.loads(
            text, parse_constant=_refuse, parse_int=_int64, parse_float=_float64, object_pairs_hook=_without_repeats
        )
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode("utf-8")  # raises for half of a surrogate pair
        return found
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({printable(reason_of(error))}); {remedy}") from error


def _refuse(text: str) -> float:
    raise ValueError(f"the number {text if len(text) <= 24 else f'{text[:24]}…'} is none that a file may have")


def _int64(text: str) -> int:
    number = int(text) if len(text) <= 20 else _MOST_INT + 1
    return number if abs(number) <= _MOST_INT else int(_refuse(text))


def _float64(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {name!r} stands twice in one object")
    return found
