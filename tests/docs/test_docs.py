"""The documentation names what is there.

A link to code says `room/file.py::symbol` and opens the file; the symbol is looked up in the file's syntax tree, so it
may move within the file. Line numbers would have to follow every commit, and are refused.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
# A module by its dotted name, or a file by its path from the root.
MODULE = re.compile(r"(?<![\w./-])(?!\w+\.(?:md|json)\b)(?:pipeline|training|jobs|benchmarks)(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w./-])(?:pipeline|training|jobs|benchmarks|tests|conf|docker|docs)/[\w/.-]*\w")
# A file that a page tells you to write.
NEW_FILE = re.compile(r"^# new file: (\S+)\.py$", re.MULTILINE)
# Petastorm's own tests, which its wheel ships.
PETASTORMS = re.compile(r"\| (?:hdfs/|workers_pool/)?tests/test_\w+\.py \|")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_opens_a_file_and_every_anchor_is_a_heading_of_it(page: Path) -> None:
    for _, target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert file.suffix == ".md", f"{page.name} links to a line of code, {target}: link to a symbol instead"
            assert anchor in anchors_of(file), f"{page.name} links to {target}: {sorted(anchors_of(file))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_symbol_in_a_link_is_defined_by_the_file_that_the_link_opens(page: Path) -> None:
    for text, target in LINK.findall(page.read_text()):
        name, _, symbol = text.strip("`").partition("::")
        if not (target.endswith(".py") and name.endswith(".py")):
            assert not re.fullmatch(r"`\w+(\.\w+)*`|.*::.*", text), f"{page.name}: name the file of [{text}]"
            continue
        assert f"/{target}".endswith(f"/{name}"), f"{page.name}: the link [{text}] opens {target}"
        if symbol:
            assert defines((page.parent / target).read_text(), symbol), f"{page.name}: {target} has no {symbol}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_and_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = PETASTORMS.sub("", page.read_text())
    for name in NEW_FILE.findall(text):
        assert not (ROOT / f"{name}.py").exists()
        text = text.replace(name, "").replace(name.replace("/", "."), "")
    for name in MODULE.findall(text):
        assert is_module_or_symbol(name), f"{page.name} names {name}, which is not there"
    for name in FILE.findall(text):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which is not there"


@pytest.mark.parametrize("module", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda file: file.stem)
def test_every_module_and_every_file_that_a_benchmark_names_is_there(module: Path) -> None:
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    assert all(is_module_or_symbol(name) for name in MODULE.findall(text)), MODULE.findall(text)
    assert all((ROOT / name).exists() for name in FILE.findall(text)), FILE.findall(text)


@pytest.mark.parametrize(
    ("symbol", "defined"),
    [
        ("function", True),
        ("Class", True),
        ("Class.method", True),
        ("Class.field", True),
        ("CONSTANT", True),
        ("typed", True),
        ("nested", False),
        ("Class.other", False),
        ("function.nested", False),
        ("other", False),
    ],
)
def test_a_symbol_is_a_function_a_class_a_method_a_field_or_a_constant(symbol: str, defined: bool) -> None:
    code = (
        "CONSTANT = 1\ntyped: int = 2\ndef function():\n    def nested(): ...\n"
        "class Class:\n    field: int\n    def method(self): ..."
    )
    assert defines(code, symbol) is defined


def defines(code: str, symbol: str) -> bool:
    """Look `symbol`, dotted for a member of a class, up in the syntax tree of a module."""
    body = ast.parse(code).body
    *classes, last = symbol.split(".")
    for name in classes:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == name), [])
    return any(last in names_of(node) for node in body)


def names_of(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of a module or a class defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def is_module_or_symbol(name: str) -> bool:
    """Find the module that a dotted name begins with, and look the rest of the name up in it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return length == len(parts) or defines(file.read_text(), ".".join(parts[length:]))
    return (ROOT.joinpath(*parts)).is_dir()


def anchors_of(page: Path) -> set[str]:
    """List the anchors that a code host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
