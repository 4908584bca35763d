"""The walls between the rooms stand: an import that goes upwards fails `make lint` (docs/architecture.md)."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["pipeline", "training", "jobs"]
# Contract → a file, and an import that the contract forbids there.
PLANTED = {
    "pipeline: downwards only": ("pipeline/chunks/chunk.py", "import pipeline.passes.count"),
    "training: downwards only": ("training/feed/plan.py", "import training.run.trainer"),
    "training knows the dataset, and no step that makes one": (
        "training/model/graph.py",
        "import pipeline.storage.commit",
    ),
    "pipeline needs no torch; jobs are leaves": ("pipeline/errors.py", "import torch"),
    "TorchRec, FBGEMM and Petastorm stay where they are wrapped": ("training/run/journal.py", "import torchrec"),
}


def test_an_import_that_a_contract_forbids_breaks_that_contract_and_no_other(tmp_path: Path) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert list(PLANTED) == [contract["name"] for contract in contracts]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert broken(tmp_path) == []
    for name, (file, line) in PLANTED.items():
        text = (ROOT / file).read_text()
        (tmp_path / file).write_text(f"{text}\n{line}\n")
        assert broken(tmp_path) == [name]
        (tmp_path / file).write_text(text)


def broken(checkout: Path) -> list[str]:
    """Run import-linter in `checkout`; the names of the contracts that do not hold."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)
    names = re.findall(r"^(.+) BROKEN", done.stdout, re.MULTILINE)
    assert (done.returncode == 0) == (names == []), done.stdout + done.stderr
    assert re.search(r"^Contracts: \d+ kept, \d+ broken", done.stdout, re.MULTILINE), done.stdout + done.stderr
    return names


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks", "tests"])
def test_no_module_and_package_share_a_name(package: str) -> None:
    # Python imports the package, and an edit of the module beside it changes nothing, without a word.
    folders = [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]
    both = [folder for folder in folders if folder.with_suffix(".py").exists() and any(folder.glob("*.py"))]
    assert both == []
