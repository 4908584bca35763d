"""The wheel that `pip wheel` builds has every room, every configuration and every template of the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "training", "jobs", "conf")
SUFFIXES = {".py", ".yaml", ".properties", ".j2", ".css", ".js"}


def test_the_wheel_has_every_room_every_configuration_and_every_template(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves folders behind
    for name in ROOMS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
        source,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
        (scripts,) = [name for name in packed if name.endswith("entry_points.txt")]
        assert "entirespace = jobs.__main__:run_entirespace" in wheel.read(scripts).decode()
    wanted = {
        str(path.relative_to(source))
        for name in ROOMS
        for path in (source / name).rglob("*")
        if path.suffix in SUFFIXES and "build" not in path.parts
    }
    assert len(wanted) > 150
    assert wanted - packed == set()
