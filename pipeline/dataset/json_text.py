"""JSON that another process wrote: parsed strictly, then typed by the dataclasses that describe it, before it is believed."""

import collections
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import xxhash

from pipeline.errors import InputError, printable, reason_of

#: The key of a file's checksum of itself: of its canonical text without this key. Earlier releases wrote none.
CONTENT_XXH3 = "content_xxh3"
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
        raise InputError(f"{where} is not valid JSON ({reason_of(error)}); {remedy}") from error


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


def canonical_text(content: Mapping[str, Any]) -> str:
    """Return the text of a JSON file: the same content gives the same bytes."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def xxh3_of_content(content: Mapping[str, Any]) -> str:
    """Hash the canonical text of `content` without its key CONTENT_XXH3."""
    rest = {name: value for name, value in content.items() if name != CONTENT_XXH3}
    digest: str = xxhash.xxh3_64_hexdigest(canonical_text(rest).encode())
    return digest


def check_own_xxh3(content: Mapping[str, Any], where: str, remedy: str) -> None:
    """Raise InputError where `content` has a checksum of itself, and another content."""
    if CONTENT_XXH3 in content and content[CONTENT_XXH3] != xxh3_of_content(content):
        raise InputError(
            f"{where} is damaged: its content has another checksum than its key {CONTENT_XXH3} says, so it was changed "
            f"after it was written; {remedy}"
        )


class WrongType(ValueError):
    """A value of another type than its dataclass says; the message names its place."""


def typed(kind: Any, raw: Any, place: str = "") -> Any:
    """Return the parsed JSON `raw` as `kind`: a dataclass, or the annotation of a field of one.

    A list becomes a tuple, an object a dataclass or a mapping; a number keeps its type. Raises WrongType for a wrong
    type, a missing key and a key that `kind` does not have.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (origin is None and _has_type(kind, raw)):
        return raw
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return typed(option, raw, place)
            except WrongType:
                continue
    elif origin is tuple and isinstance(raw, list):
        return tuple(typed(arguments[0], value, f"{place}[{number}]") for number, value in enumerate(raw))
    elif origin is Mapping and isinstance(raw, dict):
        return {name: typed(arguments[1], value, _inner(place, name)) for name, value in raw.items()}
    elif dataclasses.is_dataclass(kind) and isinstance(raw, dict):
        return _as_dataclass(kind, raw, place)
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise WrongType(f"{place or 'it'} is {printable(repr(raw)[:60])} and not of type {name}")


def _as_dataclass(kind: Any, raw: Mapping[str, Any], place: str) -> Any:
    hints, needed = _entries_of(kind)
    for name in raw:
        if name not in hints:
            raise WrongType(f"{_inner(place, printable(name))} is no key that this release knows")
    for name in needed:
        if name not in raw:
            raise WrongType(f"{_inner(place, name)} is missing")
    return kind(**{name: typed(hints[name], value, _inner(place, name)) for name, value in raw.items()})


@functools.cache
def _entries_of(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the types of the fields of a dataclass, and the names of those without a default."""
    none = dataclasses.MISSING
    needed = [
        entry.name for entry in dataclasses.fields(kind) if entry.default is none and entry.default_factory is none
    ]
    return typing.get_type_hints(kind), needed


def _has_type(kind: Any, raw: Any) -> bool:
    # Exact types: True is an int to isinstance.
    return type(raw) in (int, float) if kind is float else type(raw) is kind


def _inner(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
