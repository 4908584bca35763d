"""docs/quickstart-aliccp.md: the commands of its simulated log, run in order as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.manifest import load_manifest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart-aliccp.md").read_text()
COMMANDS = re.findall(r"^    (python -m jobs\..*)$", PAGE.split("## With a simulated log")[1].split("\n## ")[0], re.M)


def test_the_page_has_the_four_commands() -> None:
    assert [shlex.split(command)[2] for command in COMMANDS] == [
        "jobs.simulate", "jobs.preprocess", "jobs.train", "jobs.evaluate",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_the_commands_run_in_order_and_give_a_model_that_beats_chance(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
    for command in COMMANDS:
        words = [sys.executable, *shlex.split(command)[1:]]
        ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    assert sum(split["impressions"] for split in load_manifest(tmp_path / "DATASET").totals.values()) > 190_000
    assert (tmp_path / "RAW" / "dirt_train.parquet").exists()
    assert (tmp_path / "DATASET" / "audit.html").exists()
    assert (tmp_path / "RUN" / "report.html").exists()
    metrics = json.loads((tmp_path / "RUN" / "metrics.json").read_text())
    assert metrics["ctr_auc"] > 0.55
    assert metrics["true_ctr_auc"] > metrics["ctr_auc"]
