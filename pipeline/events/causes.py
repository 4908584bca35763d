"""Why values of two tables that should be equal are not: case, blanks, leading zeros, or a `.0` behind whole numbers."""

import re
from collections.abc import Callable, Iterable

from pipeline.config.events import INTEGER, LOWER, TRIM

#: (what differs, how to undo it, the cleaning that does it), in the order in which they are tried.
_DIFFERENCES: tuple[tuple[str, Callable[[str], str], str], ...] = (
    ("blanks", str.strip, TRIM),
    (".0", lambda text: re.sub(r"\A([+-]?[0-9]+)\.0*\Z", r"\1", text), INTEGER),
    ("leading zeros", lambda text: re.sub(r"\A([+-]?)0+(?=[0-9])", r"\1", text), INTEGER),
    ("case", str.lower, LOWER),
)


def without_spelling(text: str) -> str:
    """Return a text without all that the causes are about."""
    for _, undo, _ in _DIFFERENCES:
        text = undo(text)
    return text


def cause_of(one: str, other: str) -> tuple[str, list[str]] | None:
    """Return (what differs, the cleanings that make the texts equal); None if they mean different things, or are equal."""
    if one == other or without_spelling(one) != without_spelling(other):
        return None
    causes, cleanings = [], []
    for cause, undo, cleaning in _DIFFERENCES:
        without = undo(one), undo(other)
        if one != other and without != (one, other):
            one, other = without
            causes.append(cause)
            cleanings.append(cleaning)
    return " and ".join(causes), list(dict.fromkeys(cleanings))


def first_cause(ones: Iterable[str], others: Iterable[str]) -> tuple[str, str, str, list[str]] | None:
    """Return (one, other, what differs, the cleanings) of the first pair that means the same; None without one."""
    by_plain: dict[str, str] = {}
    for other in sorted(set(others)):
        by_plain.setdefault(without_spelling(other), other)
    for one in sorted(set(ones)):
        alike = by_plain.get(without_spelling(one))
        if alike is not None and (found := cause_of(one, alike)):
            return one, alike, *found
    return None
