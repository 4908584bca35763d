"""The values of a request, checked: an id, a number, a vector. What the log could not have is an InputError.

An id is a whole number from 0 to 2^63 − 1, as a number or as its decimal text. In an event log any other text is an id
too, by its hash (pipeline.dataset.raw_ids), and some texts mean missing (source.events.nulls).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, compress
from typing import Any

import numpy as np

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.raw_ids import LARGEST_ID, text_id
from pipeline.errors import InputError, printable
from pipeline.kernels.decimal_texts import parse_decimals

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_NOT_DECIMAL = "is neither a whole number nor the decimal text of one"
_MOST_SHOWN = 60
_remembered_text_id = lru_cache(1 << 16)(text_id)  # a hit takes a tenth of a hash


@dataclass(frozen=True)
class IdRule:
    """How the log of a dataset writes ids."""

    has_texts: bool  # any text is an id
    nulls: frozenset[str]  # the texts that mean missing

    @classmethod
    def of(cls, manifest: Manifest) -> "IdRule":
        """Return the rule of the source that the dataset was made from."""
        source: Mapping[str, Any] = manifest.settings.get("source") or {}
        events = source.get("events")
        return cls(events is not None, frozenset(events["nulls"] if events else ()))

    def ids_of(self, values: list[Any]) -> np.ndarray | None:
        """Return int64 [V], the raw ids of values that are all usual ones: numbers alone, or decimal texts alone."""
        try:
            if type(values[0]) is str if values else True:
                return parse_decimals(values, may_begin_with_zero=not self.has_texts)
            if set(map(type, values)) == {int} and min(values) >= 0:
                return np.array(values, np.int64)
        except (TypeError, OverflowError):
            pass
        return None

    def checked_ids(self, values: Sequence[Any], name: str) -> np.ndarray:
        """Return int64 [V], the raw ids of any values of the field `name`. Raises InputError for what is none."""
        return np.array([self._id_of(value, name) for value in values], np.int64)

    def _id_of(self, value: Any, name: str) -> int:
        if isinstance(value, str):
            if self.has_texts:
                return _remembered_text_id(value)
            if not (value.isascii() and value.isdigit()):
                raise wrong_value(name, value, _NOT_DECIMAL)
            value = int(value) if len(value) < 4000 else LARGEST_ID + 1
        elif isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise wrong_value(
                name, value, _NOT_DECIMAL if not self.has_texts else "is neither a text nor a whole number"
            )
        elif value < 0 and self.has_texts:
            return text_id(str(value))
        if not 0 <= value <= LARGEST_ID:
            raise wrong_value(name, value, f"is outside 0 to {LARGEST_ID}, the largest id")
        return int(value)

    def without_missing(self, values: list[Any]) -> tuple[list[Any], np.ndarray] | None:
        """Return the values that are not missing, and bool [N], where they are; None if all are there."""
        if None not in values and not self.nulls:
            return None
        if self.nulls:
            is_there = [not self.is_missing(value) for value in values]
        else:
            is_there = [value is not None for value in values]
        return list(compress(values, is_there)), np.array(is_there)

    def is_missing(self, value: Any) -> bool:
        """Say whether a single value means missing."""
        return value is None or (isinstance(value, str) and value in self.nulls)


def split_lists(values: Sequence[Any], name: str, what: str) -> tuple[np.ndarray, list[Any]]:
    """Return int64 [N], the length of each list, and the values of all; None is an empty list."""
    if not set(map(type, values)) <= {list, tuple}:
        values = [_as_list(value, name, what) for value in values]
    return np.fromiter(map(len, values), np.int64, len(values)), list(chain.from_iterable(values))


def _as_list(value: Any, name: str, what: str) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if not isinstance(value, list | tuple):
        raise wrong_value(name, value, f"is no list of {what}")
    return value


def numbers_of_values(values: Sequence[Any], name: str) -> np.ndarray:
    """Return float32 [V] of numbers that are all finite."""
    if not set(map(type, values)) <= {float, int}:
        for value in values:
            if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
                raise wrong_value(name, value, "is no number")
    try:
        wide = np.array(values, np.float64)
    except OverflowError:
        wide = np.array([math.inf])
    if len(wide) and not np.abs(wide).max() <= _LARGEST_FLOAT32:  # also not for NaN
        wrong = next(value for value in values if not abs(value) <= _LARGEST_FLOAT32)
        raise wrong_value(name, wrong, "is no finite number of float32; a missing one is null")
    return wide.astype(np.float32)


def numbers_or_missing(values: Sequence[Any], name: str) -> np.ndarray:
    """Return float32 [N]; NaN for None."""
    found = np.full(len(values), np.nan, np.float32)
    there = [place for place, value in enumerate(values) if value is not None]
    found[there] = numbers_of_values([values[place] for place in there], name)
    return found


def vectors_of(values: Sequence[Any], name: str, width: int) -> np.ndarray:
    """Return float32 [N, width]; NaNs for None and for an empty list."""
    length_N, numbers = split_lists(values, name, "numbers")
    for value, length in zip(values, length_N.tolist(), strict=True):
        if length not in (0, width):
            raise wrong_value(name, value, f"has {length} numbers, and the field has {width}")
    found = np.full((len(values), width), np.nan, np.float32)
    found[length_N > 0] = numbers_of_values(numbers, name).reshape(-1, width)
    return found


def wrong_value(name: str, value: Any, rule: str) -> InputError:
    """Return the error about a value of a field."""
    text = printable(repr(value))
    return InputError(f"{name}: {text if len(text) <= _MOST_SHOWN else f'{text[:_MOST_SHOWN]}…'} {rule}.")
