"""The demo on a small log: the whole road as a user's commands, and nothing done twice."""

import subprocess
import sys
from pathlib import Path


def test_the_demo_goes_the_whole_road_and_a_second_one_reuses_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.demo", f"out={tmp_path}", "impressions=20000"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    table = first.stdout[first.stdout.rindex("impressions ") :]
    assert "impressions      20,000" in table
    assert [line.split()[0] for line in table.splitlines() if line.startswith(("CTR", "CVR", "CTCVR"))] == [
        "CTR",
        "CVR",
        "CTCVR",
    ]
    for page in ("dataset/audit.html", "run/report.html"):
        assert f"\n  open {tmp_path.resolve()}/{page}\n" in table
        assert (tmp_path / page).exists()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in report
    assert "http-equiv" in report

    metrics = (tmp_path / "run" / "metrics.json").stat().st_mtime_ns
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("nothing to do.") + second.stderr.count("nothing to do.") >= 3
    assert (tmp_path / "run" / "metrics.json").stat().st_mtime_ns == metrics
    assert (
        second.stdout[second.stdout.rindex("AUC on test") :].split("\n")[:4]
        == table[table.index("AUC on test") :].split("\n")[:4]
    )
