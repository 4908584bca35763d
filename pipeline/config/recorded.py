"""Settings as the manifest records them: a setting newer than the first ones only where it is not its default.

A manifest's hash of settings says whether a finished dataset is the one asked for. With each new setting in it, every
dataset of an earlier release would be another one.
"""

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

#: The metadata of a newer setting: field(default=…, metadata=NEWER).
NEWER = {"newer": True}


def recorded(settings: Any) -> Any:
    """Return settings as plain values, without the newer ones that have their default."""
    if is_dataclass(settings):
        return {
            entry.name: recorded(value)
            for entry in fields(settings)
            if (value := getattr(settings, entry.name)) != _default_of(entry) or not entry.metadata.get("newer")
        }
    if isinstance(settings, dict):
        return {name: recorded(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [recorded(value) for value in settings]
    return settings


def _default_of(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()
