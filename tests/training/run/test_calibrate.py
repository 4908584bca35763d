"""jobs.evaluate calibrator=…: fitted on validation alone, beside the figures without it, and saved."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.isotonic import IsotonicRegression
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

from jobs.entry import compose
from jobs.evaluate import EvaluateSettings
from pipeline.errors import InputError
from training.distributed.world import join
from training.evaluation.calibrators import CALIBRATOR_FILE, read_calibrator
from training.evaluation.metrics import evaluate
from training.run.evaluate import evaluate_split
from training.run.trainer import Trainer


def columns_of(run: Path, split: str) -> dict[str, np.ndarray]:
    table = pq.read_table(run / "predictions" / split)
    return {name: table.column(name).to_numpy() for name in table.column_names if name != "context_id"}


def test_a_calibrator_is_fitted_on_validation_and_evaluated_on_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=200, splits={"train": 0.4, "validation": 0.3, "test": 0.3})
    settings, run = tiny_settings(tmp_path / "data", tmp_path / "run"), tmp_path / "run"
    with join(settings.world) as world:
        Trainer(settings, world).fit()
        plain = evaluate_split(run, settings, "test", None, world)
        figures = evaluate_split(run, settings, "test", None, world, calibrator="isotonic")
    assert figures == plain
    saved, said = json.loads((run / "metrics.json").read_text()), capsys.readouterr().err
    assert saved["split"] == "test"
    fitted, applied = columns_of(run, "validation"), columns_of(run, "test")
    clicked = fitted["click"] == 1
    for score, rows in (("p_ctr", slice(None)), ("p_cvr", clicked), ("p_ctcvr", slice(None))):
        label = fitted["click" if score == "p_ctr" else "conversion"][rows]
        margin = 1 / (2 * len(label))
        reference = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip")
        applied[score] = reference.fit(fitted[score][rows].astype(float), label).predict(applied[score].astype(float))
    expected = evaluate(
        {name: column.astype(np.float32) if name.startswith("p_") else column for name, column in applied.items()}
    )
    for name in ("ctr_log_loss", "ctr_calibration", "cvr_calibration", "ctcvr_log_loss", "ctcvr_calibration"):
        assert saved["calibrated"][name] == pytest.approx(expected[name], rel=1e-4)
    for line in saved["calibrated"]["calibration_in_words"]:
        assert f"calibrator=isotonic: {line}" in said
        assert f"With calibrator=isotonic, fitted on validation: {line}" in (run / "report.html").read_text()
    calibrator = read_calibrator(run / CALIBRATOR_FILE, "")
    assert calibrator.kind == "isotonic"
    assert calibrator.fitted_on["split"] == "validation"
    assert calibrator.fitted_on["checkpoint"] == saved["provenance"]["checkpoint"]


def test_a_calibrator_that_cannot_be_is_refused_before_anything_starts() -> None:
    with pytest.raises(InputError, match="calibrator=beta is not one of platt, isotonic"):
        compose("evaluate", EvaluateSettings, ["run=RUN", "calibrator=beta"])
    with pytest.raises(InputError, match="calibrator=platt is fitted on split=validation"):
        compose("evaluate", EvaluateSettings, ["run=RUN", "split=validation", "calibrator=platt"])
