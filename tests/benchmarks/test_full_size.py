import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.full_size import StageFigures, quality_of, read_figures, stage_commands, table_of

TRAIN = StageFigures(wall_s=10.0, cpu_s=16.0, peak_mb=900.0, is_resumed=False)
RESUMED = StageFigures(wall_s=5.0, cpu_s=4.0, peak_mb=1200.0, is_resumed=True)


def test_the_sum_leaves_the_simulation_out_and_says_what_was_resumed() -> None:
    simulate = StageFigures(100.0, 200.0, 5000.0, is_resumed=False)
    table = table_of({"simulate": simulate, "train": TRAIN, "evaluate": RESUMED}, impressions=1_000_000)
    assert table.splitlines()[-1].split()[3:7] == ["15.0", "20.0", "20.00", "1200"]
    assert [line.endswith("(resumed: only its last start)") for line in table.splitlines()] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_finished_stages_keep_their_figures_and_other_settings_are_refused(tmp_path: Path) -> None:
    commands = stage_commands(tmp_path, 1000, 2, 100)
    saved = {"train": {"command": commands["train"][1:], "figures": asdict(TRAIN)}}
    (tmp_path / "full_size.json").write_text(json.dumps(saved))
    assert read_figures(tmp_path / "full_size.json", commands) == {"train": TRAIN}
    with pytest.raises(SystemExit, match="figures of another command of train"):
        read_figures(tmp_path / "full_size.json", stage_commands(tmp_path, 1000, 1, 100))


def test_an_auc_stands_beside_the_attainable_one() -> None:
    metrics = {
        f"{of}{task}_auc{end}": value
        for task in ("ctr", "cvr", "ctcvr")
        for of, end, value in (("", "", 0.6), ("true_", "", 0.7), ("", "_share", 0.5 if task == "ctr" else None))
    }
    assert quality_of(metrics).splitlines()[:2] == [
        "ctr_auc    0.6000 of 0.7000 attainable: 50% of the way from 0.5",
        "cvr_auc    or its attainable value is undefined",
    ]
