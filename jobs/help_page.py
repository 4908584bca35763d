"""The page of --help: usage, an example, what has to be given, the groups, and every setting with its comment."""

import ast
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from jobs.command_line import settings_of
from jobs.listing import JobEntry, choices_of
from pipeline.terminal import styled

_PAGE_WIDTH = 118


def help_page(job: JobEntry, config: Mapping[str, Any], overrides: Sequence[str], config_dir: Path | None) -> str:
    """Format the composed settings of a job with their comments, below what a first command needs."""
    schema, comments = job.schema, comments_of(job.schema)
    required = [key for key, value in _values_by_key(config) if value == "???"]
    names = " ".join(f"{key}=…" for key in required)
    parts = [
        f"{_heading('Usage:')} entirespace {job.name} {names}{' ' * bool(names)}[key=value …] [group=name …]\n"
        f"   or: python -m jobs.{job.name} …\n\n{job.about}\n\n"
        f"{_heading('Example:')} entirespace {job.name} {job.example}"
    ]
    if required:
        width = max(map(len, required))
        lines = [f"  {key:<{width}}  {comments.get(key, '')}".rstrip() for key in required]
        parts.append("\n".join([_heading("Required:"), *lines]))
    groups = _group_lines(job.name, overrides, config_dir)
    if groups:
        parts.append(f"{_heading('Groups:')} give one as group=name; * is the file that is chosen here.\n{groups}")
    parts.append(f"{_heading('Settings')} and their defaults: give another value as key=value.")
    parts += _blocks(config, schema, comments)
    parts.append(f"{_heading('Options:')} --config-dir DIR (files of your own, laid out as conf/), --help")
    return "\n\n".join(parts) + "\n"


def _heading(text: str) -> str:
    return styled(text, "bold", sys.stdout)


def _group_lines(job: str, overrides: Sequence[str], config_dir: Path | None) -> str:
    typed = dict(word.split("=", 1) for word in overrides if "=" in word)
    lines = []
    for group, choices in choices_of(job, (config_dir,) if config_dir else ()).items():
        lines.append(f"  {group}=")
        for choice in choices:
            is_chosen = typed[group] == choice.name if group in typed else choice.is_default
            about = textwrap.shorten(choice.about, _PAGE_WIDTH - 24, placeholder=" …")
            lines.append(f"    {'*' if is_chosen else ' '} {choice.name:<18} {about}".rstrip())
    return "\n".join(lines)


def _blocks(config: Mapping[str, Any], schema: type[Any], comments: Mapping[str, str]) -> Iterator[str]:
    """Yield the settings as YAML: those without a group, then each group."""
    by_name = {setting.key for setting in settings_of(schema) if not is_dataclass(setting.type)}
    plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
    groups = [{key: value} for key, value in config.items() if isinstance(value, dict)]
    for block in ([plain] if plain else []) + groups:
        text = OmegaConf.to_yaml(OmegaConf.create(block))
        yield _commented(_with_short_lines(text, by_name), comments).rstrip("\n")


def _with_short_lines(text: str, by_name: set[str]) -> str:
    """Put each entry of a setting by name, such as a field of the log, on one line where it fits."""
    root = yaml.compose(text, Loader=yaml.CSafeLoader)

    def shorten(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if name in by_name and isinstance(value, yaml.MappingNode):
                for _, entry in value.value:
                    entry.flow_style = True
            elif isinstance(value, yaml.MappingNode):
                shorten(value, f"{name}.")

    shorten(root, "")
    return cast(str, yaml.serialize(root, Dumper=yaml.CSafeDumper, width=_PAGE_WIDTH, allow_unicode=True))


def comments_of(schema: type[Any]) -> dict[str, str]:
    """Return the comment of each setting that has one, by its key."""
    comments: dict[str, str] = {}
    read: dict[type[Any], dict[str, str]] = {}
    for setting in settings_of(schema):
        if setting.owner not in read:
            read[setting.owner] = _comments(setting.owner)
        found = read[setting.owner]
        name = setting.key.rpartition(".")[2]
        if name in found:
            comments[setting.key] = found[name]
    return comments


def _comments(schema: type[Any]) -> dict[str, str]:
    """Read the comment behind each field, in the source of `schema` and of the dataclasses that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not is_dataclass(owner):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for node in cast(ast.ClassDef, ast.parse(source).body[0]).body:
            # A field may take several lines; its comment is on the last one, or inside the brackets around a value.
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                if mine := [by_line[number] for number in lines if number in by_line]:
                    found[node.target.id] = mine[-1]
    return found


def with_comments(text: str, schema: type[Any]) -> str:
    """Put the comment of each setting behind its line in `text`, the settings as YAML."""
    return _commented(text, comments_of(schema))


def _commented(text: str, comments: Mapping[str, str]) -> str:
    lines = text.split("\n")
    for key, line in _lines_of_keys(yaml.compose(text, Loader=yaml.CSafeLoader)):
        if comments.get(key):
            lines[line] += f"  # {comments[key]}"
    return "\n".join(lines)


def _lines_of_keys(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield each key of a YAML mapping, dotted, with the number of the line that a comment may follow."""
    for key, value in node.value:
        is_scalar = isinstance(value, yaml.ScalarNode)  # a long one is wrapped, and its comment belongs behind its end
        yield f"{prefix}{key.value}", (value.end_mark if is_scalar else key.end_mark).line
        if isinstance(value, yaml.MappingNode):
            yield from _lines_of_keys(value, f"{prefix}{key.value}.")


def _values_by_key(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _values_by_key(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
