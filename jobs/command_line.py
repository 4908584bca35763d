"""The words behind a job: its options, and the overrides for Hydra, of which none may reach what Hydra itself does."""

import difflib
import re
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
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


def refuse_other_forms(arguments: Sequence[str], schema: type[Any]) -> None:
    """Raise InputError, with the right form, for `--key value`, `--key=value`, `-k value`, `key value` and `key: value`."""
    settings = {setting.key: setting for setting in settings_of(schema)}
    words, wrong, right = list(arguments), [], []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--help", "-h", "--config-dir", "-cd"):
            words = words[1:] if name in ("--config-dir", "-cd") and not equals else words
            continue
        is_option = word.startswith("-")
        if not is_option and not equals:
            name, equals, value = word.partition(":")
        if not is_option and (("=" in word) or name not in settings):
            continue
        key, is_negative = _key_meant(name, settings) if is_option else (name, False)
        if not key:
            continue
        typed = [word]
        if is_negative or (settings[key].type is bool and not value and not _is_value(words[:1])):
            value = "false" if is_negative else "true"
        elif not value and _is_value(words[:1]):
            value = words.pop(0)
            typed.append(value)
        wrong.append(shlex.join(typed))
        right.append(shlex.join([f"{key}={value or 'VALUE'}"]))
    if wrong:
        raise InputError(f"{' '.join(wrong)} is not how a job takes settings; write {' '.join(right)}")


def _is_value(words: Sequence[str]) -> bool:
    return bool(words) and "=" not in words[0] and not re.match(r"--?[a-zA-Z]", words[0])


def _key_meant(option: str, settings: Mapping[str, Setting]) -> tuple[str, bool]:
    """Return the setting that an option such as --batch-size means, and whether it says no; "" where that is unclear."""
    name = option.lstrip("-").replace("-", "_")
    leaves = {key: key.rpartition(".")[2] for key in settings}
    if name in settings:
        return name, False
    if len(name) == 1:
        found = [key for key in settings if key.startswith(name)]
        return (found[0] if len(found) == 1 or (name == "o" and "out" in found) else ""), False
    found = [key for key, leaf in leaves.items() if leaf == name]
    if len(found) == 1:
        return found[0], False
    if name.startswith("no_") and (key := _key_meant(name[3:], settings)[0]) and settings[key].type is bool:
        return key, True
    near = difflib.get_close_matches(name, settings, n=1, cutoff=0.75)
    return (near[0] if near else ""), False


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
