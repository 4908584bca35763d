"""docs/dataset.md, "A kind of field of your own": the steps that stand there, done on a copy of the code, and a run of it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from raw_log import random_log

from pipeline.dataset.manifest import Manifest

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"## A kind of field of your own\n(.*?)\n## ", re.DOTALL)
BLOCK = re.compile(r"```python\n# (?:new file: )?(\S+)\n(.*?)```", re.DOTALL)
FIELDS = (
    "+features.fields.strength={raw_id: '508',scope: impression,kind: magnitude}",
    "+features.fields.strength_itself={raw_id: '508',scope: impression,kind: numeric}",
)
MODEL = ("model=esmm", "plan.batch_size=64", "epochs=1", "world.device=cpu", "model.towers.hidden=[8]")


def run(code: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=code, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.acceptance
def test_the_steps_of_the_documentation_make_a_kind_that_is_preprocessed_inspected_and_trained(tmp_path: Path) -> None:
    code = tmp_path / "code"
    for name in ("pipeline", "training", "jobs", "conf"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    section = SECTION.search((ROOT / "docs" / "dataset.md").read_text())
    assert section
    blocks = BLOCK.findall(section[1])
    assert len(blocks) == 3
    for path, text in blocks:
        with (code / path).open("a") as file:
            file.write(text)
    raw = random_log(5).write(tmp_path / "raw")
    out = tmp_path / "out"
    run(code, "jobs.preprocess", f"source.path={raw}", f"out={out}", *FIELDS)
    raw_manifest = json.loads((out / "manifest.json").read_text().replace('"magnitude"', '"categorical"'))
    del raw_manifest["content_xxh3"]
    manifest = Manifest.from_json(json.dumps(raw_manifest), "copy")
    magnitudes = set()
    for file in manifest.files_of("train"):
        for row in pq.read_table(out / file.path).to_pylist():
            for index, number in zip(row["strength"], row["strength_itself"], strict=True):
                bucket = 0 if number is None else 2 + max(0, min(15, int(max(number, 1)).bit_length() - 1))
                assert index == bucket
                magnitudes.add(index)
    assert {0, 2} <= magnitudes
    assert re.search(
        r"strength +508 +impression +a number +18 rows, magnitudes", run(code, "jobs.inspect", f"data={out}")
    )
    run(code, "jobs.train", f"data={out}", f"out={tmp_path / 'run'}", *MODEL)
    assert list((tmp_path / "run").glob("**/*.safetensors"))
