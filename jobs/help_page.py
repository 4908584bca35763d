"""The page of --help: every setting with its default, the comment behind it in its dataclass, and the files of the groups."""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from jobs.command_line import settings_of
from jobs.own_files import CONF

_ABOUT = "Every setting with its default; override any as key=value, or choose a group's file as group=name."


def help_page(header: str, config: dict[str, Any], schema: type[Any], config_dir: Path | None) -> str:
    """Format the composed settings of a job with their comments, and list what each group can be set to."""
    settings = with_comments(OmegaConf.to_yaml(OmegaConf.create(config)), schema)
    return f"{header}\n\n{_ABOUT}\n\n{settings}\nGroups:\n{_choices([CONF, *([config_dir] if config_dir else [])])}\n"


def _choices(folders: list[Path]) -> str:
    choices: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in folder.glob("*/*.yaml")):
        choices.setdefault(path.parent.name, set()).add(path.stem)
    return "\n".join(f"  {group}: {', '.join(sorted(names))}" for group, names in sorted(choices.items()))


def comments_of(schema: type[Any]) -> dict[str, str]:
    """Return the comment of each setting that has one, by its key."""
    comments: dict[str, str] = {}
    read: dict[str, dict[str, str]] = {}
    for setting in settings_of(schema):
        group, _, name = setting.key.rpartition(".")
        read.setdefault(group, _comments(setting.owner))
        if name in read[group]:
            comments[setting.key] = read[group][name]
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
            # A field may take several lines; its comment is on the last one.
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in by_line:
                found[node.target.id] = by_line[node.end_lineno]
    return found


def with_comments(text: str, schema: type[Any]) -> str:
    """Put the comment of each setting behind its line in `text`, the settings as YAML."""
    comments = comments_of(schema)
    lines = text.split("\n")
    for key, line in _lines_of_keys(yaml.compose(text)):
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
