"""What Spark's Python workers import: a pass over the log is no place to load a template engine, or PyTorch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The modules below pipeline/ that only the driver imports: it renders audit.html.
DRIVER_ONLY = {
    "pipeline.html.page",
    "pipeline.audit.page",
    "pipeline.passes.publish",
    "pipeline.preprocess",
    "pipeline.score",
}
HEAVY = ("jinja2", "torch")
IMPORT = """
import importlib, sys
for name in sys.argv[1].split():
    importlib.import_module(name)
print(*sorted(set(sys.argv[2].split()) & set(sys.modules)))
"""


def test_no_module_of_the_pipeline_but_those_of_the_driver_imports_jinja2_or_torch() -> None:
    modules = {module_name(path) for path in (ROOT / "pipeline").rglob("*.py")}
    assert modules >= DRIVER_ONLY, DRIVER_ONLY - modules
    assert heavy_imports_of(modules - DRIVER_ONLY) == []


def test_a_heavy_import_is_found() -> None:
    assert heavy_imports_of({"pipeline.html.page"}) == ["jinja2"]


def heavy_imports_of(modules: set[str]) -> list[str]:
    """Import `modules` in a fresh interpreter; return which of HEAVY came with them."""
    command = [sys.executable, "-c", IMPORT, " ".join(sorted(modules)), " ".join(HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def module_name(path: Path) -> str:
    """Name the module of a file of the checkout, or the package of an __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
