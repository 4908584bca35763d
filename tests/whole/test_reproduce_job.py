"""jobs.reproduce by its real jobs: UNBIAS and ESMM with two seeds, then the same command again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]
ROOT = Path(__file__).parents[2]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_two_systems_with_two_seeds_and_then_nothing(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=150)
    out = tmp_path / "out"
    words = [
        "jobs.reproduce", "table=esmm2", f"data={tmp_path / 'data'}", f"out={out}", "seeds=2", "systems=[UNBIAS,ESMM]",
        "train_args='plan.batch_size=64 model.towers.hidden=[16,8] world.device=cpu'",
    ]  # fmt: skip
    first = run(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    saved = json.loads((out / "tables" / "esmm2.json").read_text())
    assert [row["system"] for row in saved["rows"]] == ["UNBIAS", "ESMM"]
    for row in saved["rows"]:
        folder = out / "runs" / f"esmm-{row['system'].lower()}" / "as-is"
        for seed in (1, 2):
            metrics = json.loads((folder / f"seed-{seed}" / "test.ctr.json").read_text())
            assert metrics["split"] == "test"
            for key, found in row["figures"].items():
                assert found["values"][seed - 1] == pytest.approx(100 * metrics[key])
        assert row["figures"]["cvr_auc"]["values"][0] != row["figures"]["cvr_auc"]["values"][1], "seeds differ"
        assert all(cost["cpu_s"] > 0 for cost in row["costs"])
    second = run(*words)
    assert second.returncode == 0, second.stderr
    assert "6 runs, 6 finished, 0 to do." in second.stdout
    assert "$ python" not in second.stdout
