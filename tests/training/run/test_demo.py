"""The demo's stages and table, from files written inline; tests/jobs/test_demo.py runs them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

from pipeline.errors import InputError
from training.model.settings import ModelSettings
from training.run import demo
from training.run.demo import DemoSettings, demo_commands, demo_table, is_evaluated, run_demo


def test_each_stage_reads_what_an_earlier_one_wrote() -> None:
    commands = dict(demo_commands(DemoSettings(out="D", impressions=7, ranks=3), ModelSettings()))
    assert list(commands) == ["simulate", "preprocess", "train", "evaluate"]
    assert {"out=D/raw", "impressions=7"} <= set(commands["simulate"])
    assert {"source.path=D/raw", "out=D/dataset"} <= set(commands["preprocess"])
    assert {"data=D/dataset", "out=D/run"} <= set(commands["train"])
    assert "ranks=3" in commands["train"]
    assert {"run=D/run", "truth=D/raw/truth_test.parquet"} <= set(commands["evaluate"])


def test_a_run_is_evaluated_if_its_report_is_newer_than_every_checkpoint(tmp_path: Path) -> None:
    assert not is_evaluated(tmp_path)
    old, new = tmp_path / "checkpoints/step-1/checkpoint.json", tmp_path / "checkpoints/step-2/checkpoint.json"
    for time_s, path in enumerate((old, tmp_path / "report.html", new), 1):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time_s, time_s))
        assert is_evaluated(tmp_path) == (path.name == "report.html")


def test_a_stage_that_fails_stops_the_demo_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "demo_commands", lambda settings, model: [("first", ["true"]), ("second", ["false"])])
    with pytest.raises(InputError, match="The stage second ended with status 1"):
        run_demo(DemoSettings(out=str(tmp_path)), ModelSettings())


def test_the_table_has_the_counts_and_the_aucs_beside_those_of_the_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = {
        "lines": {split: {"contexts": {"written": 600}} for split in ("train", "test")},
        "quarantined": {"bad_label": 3, "bad_feature": 0},
    }
    manifest = replace(write_tiny_dataset(tmp_path / "dataset", num_contexts=20), audit=audit)
    monkeypatch.setattr(demo, "load_manifest", lambda _path: manifest)
    (tmp_path / "run").mkdir()
    metrics = {"ctr_auc": 0.6, "true_ctr_auc": 0.7, "ctr_auc_share": 0.5}
    (tmp_path / "run/metrics.json").write_text(json.dumps(metrics))
    lines = demo_table(tmp_path).splitlines()
    total = sum(totals["impressions"] for totals in manifest.totals.values())
    assert lines[0].startswith(f"impressions {total:>11,} ")
    assert lines[1:3] == ["contexts          1,200", "quarantined           3   3 bad_label"]
    assert lines[-2] == "AUC on test       model   oracle   share of the attainable AUC"
    assert lines[-1] == "CTR              0.6000   0.7000   50%"
