"""Settings as plain values: YAML within bounds and without code, checked against the dataclasses of a job or a run.

A file of settings may come from somebody else. Reading one must neither run code nor take time without bound.
"""

import dataclasses
import math
import os
import re
import shlex
import stat
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from pipeline.errors import InputError, reason_of
from pipeline.secrets import FROM_ENVIRONMENT, has_credentials, refuse_secret_word, without_assignments

Schema = TypeVar("Schema")

MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 50_000  # keys, values, mappings and lists of one file
MAX_YAML_DEPTH = 30
_LEAST_TOO_LARGE = 1 << 63
_FLOAT_TEXT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9_]+(?:[eE][-+][0-9]+)?"
    r"|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)


def read_yaml(path: Path) -> Any:
    """Read the plain values of a YAML file.

    Raises FileNotFoundError, and InputError for a file that is not regular, too large, too deep, or no plain YAML.
    """
    try:
        return yaml_values(_read_text(path), str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); check the file.") from error


def yaml_values(text: str, where: str) -> Any:
    """Parse YAML that is within bounds; `where` names it in the InputError of any other."""
    try:
        _check_bounds(text, where)
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or reason_of(error)
        raise InputError(f"{where}{line} is no plain YAML ({problem}); fix it there.") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise InputError(f"{where} is no plain YAML ({reason_of(error)}); fix it there.") from error


def _read_text(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO without a writer would wait for ever
    with open(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file; settings are read from a file of YAML.")
        content = stream.read(MAX_YAML_BYTES + 1)
    if len(content) > MAX_YAML_BYTES:
        raise InputError(
            f"{path} has more than {MAX_YAML_BYTES} bytes, the bound of a file of settings; divide or shorten it."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start} is not UTF-8; save the file as UTF-8.") from error


def _check_bounds(text: str, where: str) -> None:
    """Walk the events of libyaml, which builds nothing yet."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(
                f"{where}, line {event.start_mark.line + 1} has the alias *{event.anchor}; write the value again instead "
                "(aliases of aliases grow without bound)."
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH or number > 2 * MAX_YAML_NODES:
            too = (
                f"is nested deeper than {MAX_YAML_DEPTH}"
                if depth > MAX_YAML_DEPTH
                else f"has more than {MAX_YAML_NODES} values"
            )
            raise InputError(f"{where} {too}, the bound of a file of settings; simplify it.")


class _PlainLoader(yaml.CSafeLoader):
    """YAML as OmegaConf reads it (1e3 is a number, 2017-05-06 is text), without tags and merges."""


def _construct_mapping(loader: Any, node: yaml.MappingNode) -> dict[Hashable, Any]:
    mapping: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str) or key in mapping:
            why = "is there twice" if isinstance(key, str) else "is not text; write it in quotes"
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {why}", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _construct_int(loader: Any, node: yaml.ScalarNode) -> int | str:
    """Keep the text where YAML 1.1 would read another number than a person: 109_14, 010, 12:30:00."""
    text: str = loader.construct_scalar(node)
    return int(text) if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text) else text


def _refuse_tag(loader: Any, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} is no plain value", node.start_mark)


_PlainLoader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("timestamp", "float", "merge", "value")
    ]
    for letter, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT_TEXT, list("-+0123456789."))
_PlainLoader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.CSafeLoader.yaml_constructors.items()
    if tag and tag.rpartition(":")[2] in ("null", "bool", "float", "str", "seq")
}
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_PlainLoader.add_constructor(None, _refuse_tag)


def build_settings(schema: type[Schema], raw: Any) -> Schema:
    """Convert plain values to an instance of `schema`, whose own rules may raise InputError.

    Raises InputError for what no setting may be: code, a number that is none, an empty text, a missing value; OmegaConfBaseException for
    an unknown key or a wrong type.
    """
    if not isinstance(raw, dict):
        raise InputError(f"The settings are {type(raw).__name__}, not a mapping of keys to values; write key: value.")
    _check_plain_value(schema, raw, "", None)
    merged = OmegaConf.merge(OmegaConf.structured(schema), _with_escapes(raw))
    _refuse_infinite(OmegaConf.to_container(merged), "")
    for key in sorted(OmegaConf.missing_keys(merged))[:1]:
        raise InputError(f"{key} is not set and has no default; give it on the command line as {key}=VALUE.")
    return cast(Schema, OmegaConf.to_object(merged))


def words_of_setting(key: str, text: str) -> tuple[str, ...]:
    """Split the value of the setting `key` into words as a shell does.

    Raises InputError for a quotation mark that is not closed, and for a word that holds a secret.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InputError(f"{key}={text} cannot be read ({error}); close the quotation mark.") from error
    for word in words:
        refuse_secret_word(word)
    return words


def _defaults_of(schema: type[Any]) -> dict[str, Any]:
    factories = {entry.name: entry.default_factory for entry in dataclasses.fields(schema)}
    made = {name: factory() for name, factory in factories.items() if factory is not dataclasses.MISSING}
    return made | {entry.name: entry.default for entry in dataclasses.fields(schema) if entry.name not in made}


def _check_plain_value(hint: Any, value: Any, key: str, default: Any) -> None:
    """Check a value, and what it holds, against its type; `default` is what the dataclass has there."""
    hint = (
        next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint) if _may_be_null(hint) else hint
    )
    if isinstance(value, dict):
        is_group = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        hints, defaults = (typing.get_type_hints(hint), _defaults_of(hint)) if is_group else ({}, {})
        of_values = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else Any
        for name, child in value.items():
            where = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                raise InputError(f"{where} names code; settings hold values only: leave {where} out.")
            _check_plain_value(hints.get(name, of_values), child, where, defaults.get(name))
    elif isinstance(value, list):
        of_items = (typing.get_args(hint) or (Any,))[0] if typing.get_origin(hint) is list else Any
        for number, child in enumerate(value):
            _check_plain_value(
                of_items, child, f"{key}[{number}]", child if isinstance(default, list) and child in default else None
            )
    elif isinstance(value, str):
        _check_text(value, key, default, hint is str)
    elif isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) < _LEAST_TOO_LARGE:
        rule = "does not fit 64 bits" if isinstance(value, int) else "is not a finite number of a usable size"
        raise InputError(f"{key}={str(value)[:40]} {rule}; give a smaller number.")
    elif hint is str and isinstance(value, bool | float):
        raise InputError(f"{key}={value} is not text; write it in quotes.")
    elif hint is bool and isinstance(value, int) and not isinstance(value, bool):
        raise InputError(f"{key}={value} is a number; give true or false.")


def _check_text(value: str, key: str, default: Any, is_text: bool) -> None:
    if "${" in value and not (key.startswith("spark.conf.") and FROM_ENVIRONMENT.fullmatch(value)):
        raise InputError(
            f"{key} holds an interpolation; settings hold values only: write the value itself (a value of spark.conf may be "
            "'${oc.env:NAME}', looked up when Spark starts)."
        )
    if has_credentials(value):
        raise InputError(
            f"{key}={without_assignments(value)} holds a credential, which would be saved; give the address without it, and "
            "the credential by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
        )
    if value == "" and is_text and default != "":
        raise InputError(f"{key} is empty; give a text of one letter or more, or leave {key} out.")
    if "\0" in value or not _is_utf8(value):
        raise InputError(f"{key}={value!r} is not text in UTF-8; write it without the bytes that are none.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _may_be_null(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _with_escapes(value: Any) -> Any:
    """Escape the checked interpolations, so that OmegaConf leaves them as they are written."""
    if isinstance(value, dict):
        return {name: _with_escapes(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_with_escapes(child) for child in value]
    return f"\\{value}" if isinstance(value, str) and "${" in value else value


def _refuse_infinite(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _refuse_infinite(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            _refuse_infinite(child, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key}={value} is not a finite number; give a number.")
