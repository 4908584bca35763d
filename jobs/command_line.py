"""The words behind a job: its options, and the overrides for Hydra, of which none may reach what Hydra itself does."""

import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.core.override_parser.types import Quote, QuotedString

from pipeline.errors import InputError

_OPTIONS = "it takes key=value, group=name, --config-dir DIR and --help"


class CommandLine(NamedTuple):
    """What was typed behind a job's name."""

    overrides: list[str]
    config_dir: Path | None
    wants_help: bool


def parse_words(arguments: Sequence[str]) -> CommandLine:
    """Divide the arguments into options and overrides, in any order. Raises InputError for another option."""
    overrides: list[str] = []
    config_dir: Path | None = None
    wants_help = False
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if word in ("--help", "-h"):
            wants_help = True
        elif name in ("--config-dir", "-cd"):
            value = value or next(words, "")
            if not value or "=" in value or config_dir is not None:
                raise InputError("--config-dir takes one folder, once: --config-dir DIR.")
            config_dir = Path(value)
        elif word.startswith("-"):
            raise InputError(f"{name} is not an option of this job; {_OPTIONS}.")
        else:
            overrides.append(word)
    return CommandLine(overrides, config_dir, wants_help)


class Setting(NamedTuple):
    """One key of a job's settings, a group included."""

    key: str  # with its groups: embedding.dim
    type: Any  # X for X | None
    owner: type[Any]  # the dataclass that has it
    is_optional: bool  # it may be null


def settings_of(schema: type[Any], prefix: str = "") -> Iterator[Setting]:
    """Walk the dataclass tree `schema`; a group comes before what it holds."""
    hints = typing.get_type_hints(schema)
    for entry in fields(schema):
        key, hint = f"{prefix}{entry.name}", hints[entry.name]
        is_optional = type(None) in typing.get_args(hint)
        if is_optional:
            hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        yield Setting(key, hint, schema, is_optional)
        if is_dataclass(hint):
            yield from settings_of(cast(type[Any], hint), f"{key}.")


def ready_for_hydra(overrides: Sequence[str], schema: type[Any]) -> list[str]:
    """Return the overrides as Hydra takes them; InputError for one that reaches beyond the job's settings.

    Settings by name, such as embedding.dims.item_id=128, are dictionaries with values of one type; Hydra adds a key that
    no YAML file has only with `++`. The value of a text is put in quotes: bare, Hydra reads out=2026_01 as the number
    202601, out=1.10 as 1.1, and refuses local[2], commas and letters beyond ASCII.
    """
    settings = list(settings_of(schema))
    by_name = tuple(
        f"{setting.key}."
        for setting in settings
        if typing.get_origin(setting.type) is dict and typing.get_args(setting.type)[1] is not Any
    )
    texts = {setting.key: setting.is_optional for setting in settings if setting.type is str}
    ready = []
    for word in overrides:
        key, equals, value = word.partition("=")
        bare = key.lstrip("+~")
        _refuse_what_is_no_setting(word, bare, value, is_text=bare in texts)
        if equals and bare in texts and not (value[:1] in "'\"" or value == "???" or (texts[bare] and value == "null")):
            value = QuotedString(text=value, quote=Quote.single).with_quotes()
        ready.append(f"{'++' if key.startswith(by_name) else ''}{key}{equals}{value}")
    return ready


def _refuse_what_is_no_setting(word: str, key: str, value: str, is_text: bool) -> None:
    if "=" not in word and not word.startswith("~"):
        raise InputError(f"{word} is not a setting; {_OPTIONS}.")
    group, _, package = key.partition("@")
    if re.match(r"hydra\b", group) or re.search(r"\bhydra\b", package):
        raise InputError(f"{key} belongs to Hydra, which runs what stands there; a job takes settings of its own only.")
    if not is_text and re.search(r"(\A|[\s/,\[{:'\"])\.\.?/", f"{package}={value}" if package else value):
        raise InputError(f"{word} leaves the folders of settings; name a file of {key} there, as {key}=name.")
    if "$" in key or ("." not in key and not is_text and re.match(r"\s*\$", value)):
        raise InputError(f"{key} holds an interpolation; write the value itself.")
