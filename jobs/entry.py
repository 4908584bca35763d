"""Entry of every job: compose the configuration, check it against the job's dataclasses, report a mistake in one line.

Each default and its comment stand once, in the dataclass. Hydra knows the defaults as `<job>_settings`, which each job's
defaults list begins with; the files of conf/ hold only differences from them. `--help` prints the composed settings with
their comments.
"""

import ast
import contextlib
import dataclasses
import difflib
import gc
import inspect
import io
import os
import re
import sys
import textwrap
import time
import tokenize
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import hydra
import yaml  # type: ignore[import-untyped]
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import InputError, printable

#: Exit status of a run that stopped at a mistake of the user or of the input.
EXIT_INPUT = 2
#: torchrun kills all ranks when the first one exits: the others wait until rank 0 has printed the error.
_AFTER_THE_ERROR_S = 3.0

# Waiting threads of OpenMP sleep. By default they spin, which costs several times the CPU where others use the cores too.
# Read when torch is loaded, which jobs do after this module, and by the processes that they start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import pipeline.kernels.cache  # noqa: F401  (it refuses an unsafe directory; jobs import this module first)
except InputError as refused:
    print(f"error: {printable(str(refused))}", file=sys.stderr, flush=True)
    sys.exit(EXIT_INPUT)

Settings = TypeVar("Settings")


def launch(name: str, schema: type[Settings], run: Callable[[Settings], None], speaks: bool = True) -> None:
    """Compose conf/<name>.yaml with the command line, check it against the dataclass `schema`, and call `run`.

    A mistake of the user ends the process with status 2 and one line on stderr, on the ranks with `speaks`. Any other
    exception is a bug, and keeps its traceback.
    """
    _register(name, schema)
    sys.argv[1:] = with_new_keys(sys.argv[1:], schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own lines and hides the exception from us

    def main(config: DictConfig) -> None:
        try:
            run(to_settings(schema, config))
        except InputError as error:
            _stop(str(error), speaks)

    try:
        with _comments_in_help(schema) if {"--help", "-h"} & set(sys.argv) else contextlib.nullcontext():
            hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(main)()
    except HydraException as error:
        _stop(_message_of(error, schema), speaks)


@contextlib.contextmanager
def imports_not_collected() -> Iterator[None]:
    """Disable garbage collection while the block imports, and exclude the imported objects from later collections.

    Importing torch and TorchRec makes 700,000 objects and hardly any garbage. Scanning them took 2.2 of the 5.4 s of a
    run of six steps.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def compose(name: str, schema: type[Settings], overrides: Sequence[str]) -> Settings:
    """Compose conf/<name>.yaml with `overrides` as `launch` does, to call a job from Python."""
    _register(name, schema)
    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            return to_settings(schema, hydra.compose(name, with_new_keys(overrides, schema)))
    except HydraException as error:
        raise InputError(_message_of(error, schema)) from error


def _register(name: str, schema: type[Any]) -> None:
    """Store the defaults of `schema` in Hydra as `<name>_settings`, for the defaults list of conf/<name>.yaml.

    An optional group, such as source.events, is stored by itself: as `events_defaults` of the group source, for the
    configurations that choose it.
    """
    store = ConfigStore.instance()
    store.store(f"{name}_settings", _plain(schema))
    for setting in settings_of(schema):
        parent, _, leaf = setting.key.rpartition(".")
        if setting.is_optional and dataclasses.is_dataclass(setting.type):
            store.store(
                f"{leaf}_defaults", {leaf: _plain(cast(type[Any], setting.type))}, group=parent.replace(".", "/")
            )


def _plain(schema: type[Any]) -> Any:
    """Return the defaults of `schema` as plain values.

    A dictionary typed by a dataclass would refuse a new entry such as +features.fields.price={…}. `to_settings` checks
    the types.
    """
    return OmegaConf.to_container(OmegaConf.structured(schema), structured_config_mode=SCMode.DICT)


def with_new_keys(overrides: Sequence[str], schema: type[Any]) -> list[str]:
    """Put `++` before the settings by name in `overrides`, such as embedding.dims.item_id=128.

    Settings by name are dictionaries with values of one type. Hydra adds a key that no YAML file has only with `++`.
    """
    by_name = tuple(
        f"{setting.key}."
        for setting in settings_of(schema)
        if typing.get_origin(setting.type) is dict and typing.get_args(setting.type)[1] is not Any
    )
    return [f"++{text}" if text.startswith(by_name) else text for text in overrides]


class Setting(NamedTuple):
    """One key of a job's settings, a group included."""

    key: str  # with its groups: embedding.dim
    type: Any  # X for X | None
    comment: str  # what stands behind it in the dataclass
    is_optional: bool  # it may be null


def settings_of(schema: type[Any], prefix: str = "") -> Iterator[Setting]:
    """Walk the dataclass tree `schema`; a group comes before what it holds."""
    hints, comments = typing.get_type_hints(schema), _comments(schema)
    for entry in dataclasses.fields(schema):
        key, hint = f"{prefix}{entry.name}", hints[entry.name]
        is_optional = type(None) in typing.get_args(hint)
        if is_optional:
            hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        yield Setting(key, hint, comments.get(entry.name, ""), is_optional)
        if dataclasses.is_dataclass(hint):
            yield from settings_of(cast(type[Any], hint), f"{key}.")


def _comments(schema: type[Any]) -> dict[str, str]:
    """Read the comment behind each field, in the source of `schema` and of the dataclasses that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for node in cast(ast.ClassDef, ast.parse(source).body[0]).body:
            # A field may take several lines; its comment is on the last one.
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in by_line:
                found[node.target.id] = by_line[node.end_lineno]
    return found


@contextlib.contextmanager
def _comments_in_help(schema: type[Any]) -> Iterator[None]:
    """Print what the block prints with the comments of `schema` behind its settings."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        print(with_comments(printed.getvalue(), schema))


def with_comments(text: str, schema: type[Any]) -> str:
    """Put the comment of each setting behind its line in `text`: a header, the settings as YAML, `Groups:`."""
    comments = {setting.key: setting.comment for setting in settings_of(schema)}
    lines = text.split("\n")
    first = next(number for number, line in enumerate(lines) if line.partition(":")[0] in comments)
    end = next((number for number, line in enumerate(lines) if line.startswith("Groups:")), len(lines))
    for key, line in _lines_of_keys(yaml.compose("\n".join(lines[first:end]))):
        if comments.get(key):
            lines[first + line] += f"  # {comments[key]}"
    return "\n".join(lines)


def _lines_of_keys(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield each key of a YAML mapping, dotted, with the number of the line that a comment may follow."""
    for key, value in node.value:
        is_scalar = isinstance(value, yaml.ScalarNode)  # a long one is wrapped, and its comment belongs behind its end
        yield f"{prefix}{key.value}", (value.end_mark if is_scalar else key.end_mark).line
        if isinstance(value, yaml.MappingNode):
            yield from _lines_of_keys(value, f"{prefix}{key.value}.")


def to_settings(schema: type[Settings], config: DictConfig) -> Settings:
    """Convert `config` to an instance of `schema`; InputError for an unknown key, a wrong type or a missing value."""
    try:
        # As plain values: a merge of typed nodes would not check the keys that `++` has added.
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.to_container(config))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            key = missing[0]
            raise InputError(f"{key} is not set and has no default; give it on the command line as {key}=VALUE.")
        return cast(Settings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise InputError(_message_of(error, schema)) from error


def _message_of(error: Exception, schema: type[Any]) -> str:
    """Cut an error of Hydra or OmegaConf to one line; for an unknown setting, name the nearest known ones."""
    text = str(error.__cause__ or error) if isinstance(error, HydraException) else str(error)
    unknown = re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", text)
    if unknown:
        full = re.search(r"full_key: (\S+)", text)
        key = full.group(1) if full else unknown.group(1)
        if group := _optional_group(key, schema):
            return f"{key} is a setting of {group}, which this command does not choose; give {'='.join(group.rsplit('.', 1))} too."
        near = difflib.get_close_matches(key, [setting.key for setting in settings_of(schema)], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists every setting."
        return f"{key} is not a setting of this job; {hint}"
    first = re.sub(r"\s+", " ", re.split(r"\n    full_key|\nConfig search path", text)[0]).strip()
    full = re.search(r"full_key: (\S+)", text)
    return f"{full.group(1)}: {first}" if full else first


def _optional_group(key: str, schema: type[Any]) -> str:
    """Return the optional group that `key` is a setting of; "" for none."""
    settings = {setting.key: setting for setting in settings_of(schema)}
    groups = (key[:end] for end, letter in enumerate(key) if letter == ".")
    return next((group for group in groups if key in settings and settings[group].is_optional), "")


def _stop(message: str, speaks: bool) -> None:
    if speaks:
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)
    else:
        time.sleep(_AFTER_THE_ERROR_S)
    sys.exit(EXIT_INPUT)
