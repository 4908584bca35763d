"""The simulator and the pipeline, which share no code for it, agree on every planted fault and every label."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module

from jobs.entry import typed
from pipeline.preprocess import preprocess
from pipeline.settings import PreprocessSettings
from pipeline.simulate import SimulateSettings, simulate

#: Reasons that leave their line in the dataset.
KEPT = ("conversion_without_click", "feature_count_mismatch")


@pytest.mark.usefixtures("spark")
def test_the_quarantine_holds_exactly_the_planted_lines_and_the_dataset_every_simulated_label(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raw = tmp_path / "raw"
    with initialize_config_module("conf", version_base="1.3"):
        overrides = [f"out={raw}", "impressions=20000", "seed=3", "rates=demo", "dirt=0.01", "actions=true"]
        simulate(typed(SimulateSettings, compose("simulate", overrides)))
    manifest = preprocess(preprocess_settings(raw, tmp_path / "out", "labels=cart_wish"))

    planted = [row for split in ("train", "test") for row in pq.read_table(raw / f"dirt_{split}.parquet").to_pylist()]
    set_aside = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    assert len({row["reason"] for row in planted}) == 9
    assert sorted((row["source"], row["offset"], row["reason"]) for row in set_aside) == sorted(
        (row["file"], row["offset"], row["reason"]) for row in planted if row["reason"] not in KEPT
    )
    for row in set_aside:
        text = (raw / row["source"]).read_bytes()
        assert text[row["offset"] :].split(b"\n", 1)[0] == row["line"]

    simulated = json.loads((raw / "simulation.json").read_text())["splits"]
    both_of_train = [manifest.totals[split] for split in ("train", "validation")]
    for name in ("impressions", "clicks", "dactions", "conversions"):
        assert sum(total[name] for total in both_of_train) == simulated["train"][name]
        assert manifest.totals["test"][name] == simulated["test"][name]
    for split, totals in manifest.audit["lines"].items():
        for grain, lines in totals.items():
            alone = lines.get("without_impressions", 0)
            assert lines["read"] == lines["written"] + alone + sum(lines["quarantined"].values()), (split, grain)
