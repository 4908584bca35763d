"""The command lines of `make install`, for a CPU and for GPUs. Nothing is installed: make prints them (-n)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lines_of(venv: Path, *words: str) -> str:
    command = ["make", "-n", "-B", "install", f"VENV={venv}", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("words", [(), ("GPU=0",), ("GPU=",)])
def test_a_cpu_gets_the_pinned_list_as_it_is(tmp_path: Path, words: tuple[str, ...]) -> None:
    lines = lines_of(tmp_path, *words)
    assert "--no-deps --requirement requirements.txt" in lines
    assert "requirements-gpu" not in lines
    assert "uninstall --quiet --yes fbgemm_gpu 2" in lines
    assert f"touch {tmp_path}/.installed\n" in lines


def test_gpus_get_the_same_releases_with_fbgemm_for_cuda(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "GPU=1")
    pinned = tmp_path / "requirements-gpu.txt"
    assert f"--no-deps --requirement {pinned}" in lines
    assert "uninstall --quiet --yes fbgemm_gpu-cpu" in lines
    assert f"touch {tmp_path}/.installed-gpu\n" in lines
    (script,) = re.findall(rf"sed '(.*)' requirements.txt > {pinned}", lines)
    made = subprocess.run(
        ["sed", script, "requirements.txt"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    given = (ROOT / "requirements.txt").read_text()
    changed = [pair for pair in zip(given.splitlines(), made.splitlines(), strict=True) if pair[0] != pair[1]]
    assert [(old.partition("==")[0], new.partition("==")[0]) for old, new in changed] == [
        ("fbgemm_gpu-cpu", "fbgemm_gpu")
    ]
    assert changed[0][0].partition("==")[2] == changed[0][1].partition("==")[2]
    dockerfile = (ROOT / "docker" / "train.Dockerfile").read_text()
    assert f"sed -i '{script}' /src/requirements.txt" in dockerfile, "the image installs what make installs"
