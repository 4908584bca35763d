"""jobs.pipeline over two simulated days, by its real jobs: progressive validation, scores, and a second run that does nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]
ROOT = Path(__file__).parents[2]


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_two_days_one_after_the_other_and_then_nothing(tmp_path: Path) -> None:
    for number, day in enumerate(("2020-01-01", "2020-01-02"), 1):
        done = run("jobs.simulate", f"out={tmp_path / 'raw' / day}", "impressions=5000", f"seed={number}", "rates=demo")
        assert done.returncode == 0, done.stderr
    words = [
        "jobs.pipeline", f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", "days=[2020-01-01,2020-01-02]",
        "train_args=plan.batch_size=200", f"score={tmp_path / 'raw' / '2020-01-02'}",
    ]  # fmt: skip
    first = run(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    out = tmp_path / "out"
    days = json.loads((out / "days.json").read_text())["days"]
    assert [sorted(entry) for entry in days] == [["day", "test"], ["day", "progressive", "test"]]
    manifest = json.loads((out / "2020-01-02" / "dataset" / "manifest.json").read_text())
    assert days[1]["progressive"]["num_impressions"] == manifest["totals"]["train"]["impressions"]
    predicted = pq.read_table(out / "2020-01-02" / "run" / "predictions" / "test").sort_by("impression_id")
    scored = pq.ParquetDataset(out / "scores" / "scores" / "period=test", partitioning=None).read()
    of_id = dict(zip(scored["impression_id"].to_pylist(), scored["p_ctr"].to_pylist(), strict=True))
    for number, value in zip(predicted["impression_id"].to_pylist(), predicted["p_ctr"].to_pylist(), strict=True):
        assert of_id[number] == pytest.approx(value, abs=1e-6)
    second = run(*words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("nothing to do.") == 8
    assert "$ python" not in second.stdout
