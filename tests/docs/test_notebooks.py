"""The notebooks of examples/: committed with their outputs and a picture each, and they run from the first cell to the last."""

import base64
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# A folder of the machine on which a notebook was run.
OWN_PATH = re.compile(r"/(?:home|root|tmp|work|Users)/\w")


def outputs_of(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def pictures_of(outputs: list[nbformat.NotebookNode]) -> list[bytes]:
    return [base64.b64decode(one.data["image/png"]) for one in outputs if "image/png" in one.get("data", {})]


def test_every_notebook_is_on_the_page_of_examples() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    assert sorted(re.findall(r"\(\.\./examples/([\w-]+)\.ipynb\)", page)) == [path.stem for path in NOTEBOOKS]
    assert len(NOTEBOOKS) == 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs_and_is_small(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = outputs_of(path)
    assert not [output for output in outputs if output.output_type == "error"]
    assert pictures_of(outputs)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures_of(outputs))
    assert path.stat().st_size < 200_000
    assert "Warning" not in "".join(output.get("text", "") for output in outputs)
    assert not OWN_PATH.search(path.read_text())


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.timeout(1200)
def test_the_notebooks_run_and_draw_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder for all: the raw log, the dataset and the run that several of them make are made once."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
        notebook = nbformat.read(tmp_path / path.name, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert pictures_of(outputs), path.name
        printed = "".join(output.get("text", "") for output in outputs)
        assert "error:" not in printed, printed[-3000:]
