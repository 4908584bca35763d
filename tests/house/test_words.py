"""Names and docstrings keep to the house rules: one owner of a name, array suffixes of one legend, a verb first."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What is copied into an export imports nothing of this project, so it says again what it needs.
STANDALONE = ROOT / "training" / "export" / "standalone"
MODULES = sorted(
    path
    for package in ("pipeline", "training", "jobs")
    for path in (ROOT / package).rglob("*.py")
    if path.parent != STANDALONE
)
# Names that several modules define for a reason.
SHARED_NAMES = {
    "run": "the one function of every job",
    "FORMAT_VERSION": "each format has its own: dataset, simulated log, checkpoint",
    "LOCK": "the name of the lock file of a dataset, and of a run",
    "MISSING": "omegaconf's marker of a setting without default, and index 0 of a dataset",
}
# The letters that an array may end in, of the legends in pipeline/__init__.py and training/__init__.py: at most two.
LEGENDS = {"pipeline": "LVFRWNX", "training": "BCFDHVRLN"}
# "Parse …", not "What …", "How …", "The way back": a reader has to see whether a function loads, computes or writes.
NOT_A_VERB = re.compile(r"(What|How|Where|Whether|When|Who|Which|The way)\b")


def test_a_name_at_top_level_has_one_owner() -> None:
    owners = defaultdict(set)
    for path in MODULES:
        for name in top_level_names(ast.parse(path.read_text())):
            owners[name.lstrip("_")].add(str(path.relative_to(ROOT)))
    several = {name: sorted(files) for name, files in owners.items() if len(files) > 1}
    assert set(SHARED_NAMES) <= set(several), "a name of the list has one owner now: take it off"
    assert not {name: files for name, files in several.items() if name not in SHARED_NAMES}


@pytest.mark.parametrize("package", LEGENDS)
def test_the_suffix_of_an_array_is_of_the_legend(package: str) -> None:
    legend = re.compile(f"[{LEGENDS[package]}]{{1,2}}")
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in MODULES
        if path.is_relative_to(ROOT / package)
        for name in names_in(ast.parse(path.read_text()))
        if (suffix := re.fullmatch(r".*[a-z0-9]_([A-Z][A-Z0-9]*)", name)) and not legend.fullmatch(suffix[1])
    }
    assert not found


def test_the_legends_are_those_of_the_packages() -> None:
    for package, letters in LEGENDS.items():
        described = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
        assert all(re.search(rf"\b{letter}\b", described) for letter in letters), package


def test_the_docstring_of_a_function_begins_with_a_verb() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {first_line}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and not is_property(node)
        if NOT_A_VERB.match(first_line := (ast.get_docstring(node) or "").partition("\n")[0])
    ]
    assert not found


def names_in(module: ast.Module) -> Iterator[str]:
    """Yield every name of a module: variables, parameters, attributes."""
    for node in ast.walk(module):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name


def top_level_names(module: ast.Module) -> Iterator[str]:
    """Yield the names that the statements of a module define."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))


def is_property(node: ast.FunctionDef) -> bool:
    """Find out whether a function is read like a field: then a noun describes it."""
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
