"""The same event log in another time zone and language of the machine: the same manifest. Nothing in it knows today's date."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from event_log import ACTIONS, IMPRESSIONS, written

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]
ROOT = Path(__file__).parents[2]
PLACES = (
    {"TZ": "UTC", "LC_ALL": "C.UTF-8"},
    {"TZ": "America/Los_Angeles", "LC_ALL": "tr_TR.UTF-8", "JAVA_TOOL_OPTIONS": "-Duser.language=tr -Duser.country=TR -Duser.timezone=Asia/Tokyo"},
)  # fmt: skip


def local_time(seconds: int) -> str:
    return f"1970-01-{1 + seconds // 86400:02} {seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def test_a_log_with_local_times_has_the_same_manifest_in_another_zone_and_language(tmp_path: Path) -> None:
    tables = [
        [row | {"timestamp": local_time(row["timestamp"] + 9000)} for row in rows] for rows in (IMPRESSIONS, ACTIONS)
    ]
    # A time without a date would be today's, and CST somewhere in America.
    tables[0] += [
        IMPRESSIONS[0] | {"impression_id": 90 + n, "timestamp": text}
        for n, text in enumerate(("10:01:40", "1970-01-01 10:00:00 CST"))
    ]
    overrides = [
        *written(tmp_path / "raw", "csv", *tables),
        "source.events.time_unit=iso",
        "source.events.time_zone=+02:30",
    ]
    manifests = []
    for number, place in enumerate(PLACES):
        out = tmp_path / f"out-{number}"
        command = [
            sys.executable,
            "-m",
            "jobs.preprocess",
            f"source.path={tmp_path / 'raw'}",
            f"out={out}",
            "spark.master=local[1]",
            *overrides,
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | place
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert run.returncode == 0, run.stderr[-2000:]
        assert "2 malformed_line: timestamp is '10:01:40'" in run.stdout
        manifests.append(json.loads((out / "manifest.json").read_text()))
    assert manifests[0] == manifests[1]
    assert manifests[0]["totals"]["train"]["impressions"] == 4
