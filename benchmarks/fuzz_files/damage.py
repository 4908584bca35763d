"""Damage to one file: to its bytes, to the JSON, YAML or lines in it, or to what stands at its path. All follows from the draw."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))  # where the damage to raw lines is

from mutations import long_line, mutated

JSON, YAML, PARQUET, SAFETENSORS, LINES, GZIP = "json", "yaml", "parquet", "safetensors", "lines", "gzip"
#: A file that code in a configuration would make, relative to the working directory; and a variable that it may not read.
MARKER, SECRET = "code-ran", "ENTIRESPACE_FUZZ_SECRET"

_LONG = 100_000
VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), "", "0", "x", "nan", "../../outside", "/etc/passwd", "/dev/zero", "a/../../b", ".", "..",
    "train/../../x", "\x00", "a\nb", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "\ud800", "é" * 300, "x" * _LONG, [], {}, [[]], [None],
    {"": None}, {"_target_": "os.system"}, "${oc.env:" + SECRET + "}", "${x", [1] * 10_000,
)  # fmt: skip
_INSERTED = (
    b"\x00",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b"{",
    b"}",
    b"]",
    b"//x\n",
    b"#",
)
_CALLBACK = f"callbacks: {{x: {{_target_: builtins.open, file: {MARKER}, mode: w}}}}"
#: Lines that make a YAML file run code, read the environment, or grow without bound.
_HOSTILE_YAML = (
    f"hydra: {{{_CALLBACK}}}", f"hydra:\n  {_CALLBACK}", f"hydra: {{run: {{dir: {MARKER}}}}}", "hydra: {sweeper: {_target_: os.getcwd}}",
    f"hydra: {{launcher: {{_target_: builtins.open, file: {MARKER}, mode: w}}}}", f"seed: ${{oc.env:{SECRET}}}",
    f"name: ${{oc.env:{SECRET}}}", f"name: !!python/object/apply:builtins.open [{MARKER}, w]", "name: !!binary aGk=",
    "defaults: [/hydra/launcher: joblib]", "defaults: [{/model: ../../../../etc/passwd}]", "defaults: [_self_, _self_]",
    "defaults: 3", "defaults: [/model: mine]", "name: ${name}", "name: ${a.b}", "name: ${oc.decode:x}", "name: *nothing",
    "b0: &b0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"b{n}: &b{n} [" + ", ".join([f"*b{n - 1}"] * 9) + "]\n" for n in range(1, 10)),
    "deep: " + "[" * 3000 + "]" * 3000, "name: &a [*a]", "? [1, 2]\n: 3", "\tname: x", "seed: 1\nseed: 2", "%YAML 9.9", "--- \n--- ",
    "seed: 0x1F", "seed: 1_000", "seed: 1e3", "seed: 010", "seed: 12:30:45", "seed: .nan", "seed: 1.", "epochs: yes",
)  # fmt: skip


def damage(draw: random.Random, path: Path, form: str) -> str:
    """Damage the file at `path`, which holds a `form`; return what was done, in words."""
    kinds: list[Callable[[random.Random, Path, str], str]] = [_damage_place, *[_damage_bytes] * 5]
    kinds += [_damage_structure] * (0 if form == GZIP else 4)
    return draw.choice(kinds)(draw, path, form)


def _damage_place(draw: random.Random, path: Path, form: str) -> str:
    """Put something else in place of the file."""
    what = draw.choice(
        (
            "nothing",
            "empty",
            "a folder",
            "a FIFO",
            "a link to nothing",
            "a link to itself",
            "a link to /dev/zero",
            "a link to it",
        )
    )
    content = path.read_bytes()
    path.unlink()
    if what == "empty":
        path.touch()
    elif what == "a folder":
        path.mkdir()
    elif what == "a FIFO":
        os.mkfifo(path)
    elif what == "a link to it":
        outside = path.parents[2] / "outside"
        outside.write_bytes(content)
        path.symlink_to(outside)
    elif what.startswith("a link"):
        path.symlink_to({"nothing": "not-there", "itself": path.name}.get(what.split()[-1], "/dev/zero"))
    return f"{what} in its place"


def _damage_bytes(draw: random.Random, path: Path, form: str) -> str:
    content = path.read_bytes()
    # What Parquet, gzip and safetensors say of themselves is at their ends, and short beside the values.
    near = draw.choice((len(content), len(content), 16, 400))
    at = draw.randrange(max(len(content), 1))
    if near < len(content):
        at = (
            draw.randrange(near)
            if form in (SAFETENSORS, GZIP) and draw.random() < 0.6
            else len(content) - 1 - draw.randrange(near)
        )
    size = draw.choice((1, 2, 4, 8, 64, 512, 4096))
    block = content[at : at + size]
    other_at = draw.randrange(max(len(content), 1))
    other = content[other_at : other_at + size]
    what = draw.choice(
        (
            "flip",
            "flip",
            "flip",
            "flips",
            "cut",
            "cut head",
            "repeat",
            "remove",
            "swap",
            "zero",
            "random",
            "insert",
            "append",
            "twice",
        )
    )
    if what == "flip":
        flipped = bytearray(content)
        flipped[at] ^= 1 << draw.randrange(8)
        content = bytes(flipped)
    elif what == "flips":
        flipped = bytearray(content)
        for _ in range(draw.choice((2, 8, 64))):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        content = bytes(flipped)
    elif what == "swap" and abs(at - other_at) >= size:
        first, second = sorted((at, other_at))
        one, two = content[first : first + size], content[second : second + size]
        content = content[:first] + two + content[first + size : second] + one + content[second + size :]
    else:
        content = {
            "cut": content[:at],
            "cut head": content[at:],
            "repeat": content[:at] + block + block + content[at + len(block) :],
            "remove": content[:at] + content[at + size :],
            "swap": content[:at] + other + content[at + len(other) :],
            "zero": content[:at] + bytes(len(block)) + content[at + size :],
            "random": content[:at] + draw.randbytes(len(block)) + content[at + size :],
            "insert": content[:at] + draw.choice(_INSERTED) + content[at:],
            "append": content + draw.choice((*_INSERTED, content[at:], bytes(size))),
            "twice": content + content,
        }[what]
    path.write_bytes(content)
    return f"{what} at byte {at} of {path.stat().st_size} ({size})"


def _damage_structure(draw: random.Random, path: Path, form: str) -> str:
    if form == PARQUET:
        return _damage_footer(draw, path)
    if form == LINES:
        return _damage_lines(draw, path)
    if form == YAML:
        return _damage_yaml(draw, path)
    if form == SAFETENSORS:
        return _damage_header(draw, path)
    text = path.read_text()
    if draw.random() < 0.1:
        text = draw.choice(
            (
                "[" * _LONG + "]" * _LONG,
                '{"a":' * _LONG,
                "null",
                "[]",
                "{}",
                "3",
                '"x"',
                text + text,
                text[:-2] + ',"format_version": 1}',
                "NaN",
            )
        )
        path.write_text(text)
        return f"the JSON {text[:40]}"
    tree, done = _damaged_tree(draw, json.loads(text))
    path.write_bytes(json.dumps(tree, indent=1, sort_keys=True).encode())
    return done


def _damage_yaml(draw: random.Random, path: Path) -> str:
    text = path.read_text()
    if draw.random() < 0.5:
        line = draw.choice(_HOSTILE_YAML)
        head, _, rest = text.partition("\n")
        path.write_text(f"{head}\n{line}\n{rest}" if draw.random() < 0.7 else f"{text}\n{line}\n")
        return f"the line {line[:60]!r}"
    header = text.partition("\n")[0] if text.startswith("#") else ""
    tree, done = _damaged_tree(draw, yaml.safe_load(text))
    path.write_bytes(f"{header}\n{_yaml_of(tree)}".encode(errors="surrogatepass"))
    return done


def _yaml_of(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree, allow_unicode=len(repr(tree)) % 2 == 0)
    except (yaml.YAMLError, RecursionError, ValueError):
        return f"deep: {'[' * 900}{']' * 900}"


def _damage_header(draw: random.Random, path: Path) -> str:
    """Rewrite the JSON header of a safetensors file: names, types, shapes, offsets."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    tree, done = _damaged_tree(draw, json.loads(content[8 : 8 + length]))
    try:
        text = json.dumps(tree).encode()
    except RecursionError:  # of a value that is nested deeper than Python's writer goes
        text = b"[" * _LONG
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return f"header: {done}"


def _damage_footer(draw: random.Random, path: Path) -> str:
    """Damage the footer of a Parquet file, or the length of it."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    if draw.random() < 0.15:
        new = draw.choice((0, 1, length - 1, length + 1, len(content) - 12, len(content), 2**31 - 1, 2**32 - 1))
        content[-8:-4] = new.to_bytes(4, "little")
        done = f"footer of {new} bytes"
    else:
        at = len(content) - 8 - length + draw.randrange(length)
        content[at] = draw.choice((content[at] ^ 1 << draw.randrange(8), 0xFF, 0x00, 0x80, (content[at] + 1) % 256))
        done = f"footer, byte {at}"
    path.write_bytes(content)
    return done


def _damage_lines(draw: random.Random, path: Path) -> str:
    lines = path.read_bytes().split(b"\n")
    what = draw.choice(("mutate", "mutate", "mutate", "long", "repeat", "remove", "shuffle", "carriage returns"))
    at = draw.randrange(len(lines))
    if what == "mutate":
        for _ in range(draw.choice((1, 3, 20))):
            at = draw.randrange(len(lines))
            lines[at] = mutated(draw, lines[at])
    elif what == "long":
        lines[at] = long_line(draw, lines[at])
    elif what == "repeat":
        lines.insert(draw.randrange(len(lines)), lines[at])
    elif what == "remove":
        del lines[at]
    elif what == "shuffle":
        draw.shuffle(lines)
    path.write_bytes((b"\r\n" if what == "carriage returns" else b"\n").join(lines))
    return f"{what}: line {at}"


def _damaged_tree(draw: random.Random, tree: Any) -> tuple[Any, str]:
    """Damage one or two nodes of a tree of dictionaries and lists."""
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = draw.choice(places)
        done.append(_damage_node(draw, parent, key))
    return tree, "; ".join(done)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """List every (parent, key) below `node`."""
    found: list[tuple[Any, Any]] = []
    waiting = [node]
    while waiting:
        parent = waiting.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else ()
        for key in keys:
            found.append((parent, key))
            if isinstance(parent[key], dict | list):
                waiting.append(parent[key])
    return found


def _damage_node(draw: random.Random, parent: Any, key: Any) -> str:
    old = parent[key]
    what = draw.choice(("value", "value", "value", "near", "near", "remove", "rename", "swap", "again", "wrap"))
    shown = f"{key}={str(old)[:30]!r}"
    if what == "remove":
        del parent[key]
        return f"without {shown}"
    if what == "rename" and isinstance(parent, dict):
        new = draw.choice(("x", "", "_target_", f"{key} ", str(key).upper(), f"../{key}", f"{key}\x00"))
        parent[new] = parent.pop(key)
        return f"{shown} under the name {new!r}"
    if what == "swap":
        other = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
        return f"{shown} swapped with {other}"
    if what == "again" and isinstance(parent, list):
        parent.insert(draw.randrange(len(parent) + 1), json.loads(json.dumps(old)))
        return f"{shown} twice"
    if what == "again" and isinstance(old, list):
        old.reverse()
        return f"{shown} reversed"
    if what == "wrap":
        parent[key] = draw.choice(([old], {"x": old}, str(old), _nested(draw.choice((50, 900)))))
    elif what == "near" and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = draw.choice((old + 1, old - 1, -old, old * 2, float(old), str(old), old + 0.5))
    elif what == "near" and isinstance(old, str) and old:
        at = draw.randrange(len(old))
        letter = draw.choice("0123456789abcdef/. A")
        parent[key] = draw.choice(
            (
                old[:at] + letter + old[at + 1 :],
                old[:at] + old[at + 1 :],
                old + letter,
                f"./{old}",
                f"../{old}",
                old.upper(),
            )
        )
    else:
        parent[key] = draw.choice(VALUES)
    return f"{shown} is {str(parent[key])[:40]!r}"


def _nested(depth: int) -> Any:
    tree: Any = []
    for _ in range(depth):
        tree = [tree]
    return tree


def restore(pristine: Path, folder: Path) -> None:
    """Make `folder` what `pristine` is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder, symlinks=True)
