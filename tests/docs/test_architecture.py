"""docs/architecture.md shows the contracts of pyproject.toml and every room that there is."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PACKAGES = ["pipeline", "training"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_picture_shows_the_layers_that_the_linter_holds(package: str) -> None:
    lines = PAGE.split("```")[1].splitlines()
    heading = next(line for line in lines if package in line)
    start = heading.index(package)
    stop = heading.find("pipeline") if package == "training" else None
    column = [line[start:stop].replace("▪", "") for line in lines[lines.index(heading) + 1 :]]
    shown = [re.sub(r"\s+", " ", line).strip() for line in column if line.strip()]
    assert shown == next(contract["layers"] for contract in CONTRACTS if contract.get("containers") == [package])


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_has_every_room(package: str) -> None:
    section = PAGE.split(f"## The rooms of `{package}`")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    there = {
        path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(there - {"__init__"})


def test_what_is_marked_as_ground_is_what_training_may_import() -> None:
    layers = next(contract["layers"] for contract in CONTRACTS if contract.get("containers") == ["pipeline"])
    forbidden = next(contract for contract in CONTRACTS if contract.get("source_modules") == ["training"])
    rooms = {f"pipeline.{room}" for layer in layers for room in layer.split(" | ")}
    ground = rooms - set(forbidden["forbidden_modules"])
    assert {f"pipeline.{room}" for room in re.findall(r"(\w+) ▪", PAGE.split("```")[1])} == ground
