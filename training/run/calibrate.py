"""`jobs.evaluate calibrator=…`: fit a calibrator on the validation split, and evaluate another split with and without it."""

from pathlib import Path
from typing import Any

from pipeline.errors import writing
from training.evaluation.calibrators import CALIBRATOR_FILE, fit_calibrator
from training.evaluation.health import POSITIVES
from training.evaluation.metrics import evaluate_with_curves
from training.evaluation.observed_rate import observed_rates, sentences_of
from training.evaluation.prediction_files import PredictionFiles
from training.evaluation.settings import FITTED_SPLIT
from training.run.provenance import Provenance, ResultPaths


def evaluate_calibrated(
    kind: str, run: Path, predictions: PredictionFiles, provenance: Provenance, num_threads: int
) -> dict[str, Any]:
    """Fit on the predictions of the validation split by the same checkpoint, and return the figures of `predictions`, calibrated.

    Writes RUN/calibrator.json. The predictions of validation are there, those of `provenance` with another split.
    """
    of_validation = {**provenance, "split": FITTED_SPLIT, "truth": None}
    folder = ResultPaths.of(run, of_validation).predictions
    fitted = fit_calibrator(
        kind, PredictionFiles(folder, f"evaluate run={run} split={FITTED_SPLIT} again."), of_validation
    )
    with writing(f"The calibrator of run={run}", "copy the run to another place"):
        fitted.write(run / CALIBRATOR_FILE)
    evaluated = evaluate_with_curves(fitted.apply(predictions), None, num_threads, predictions.contexts)
    rates = observed_rates(evaluated.curves, evaluated.intervals)
    return {
        "calibrator": kind,
        **evaluated.metrics,
        "intervals": evaluated.intervals,
        "observed_rates": {task: [rate.as_json() for rate in of_task] for task, of_task in rates.items()},
        "calibration_in_words": sentences_of(rates, POSITIVES),
    }
