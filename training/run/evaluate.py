"""Predict a split with a finished run, and evaluate the predictions (DESIGN §8)."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.atomic_files import write_whole
from pipeline.dataset.manifest import Manifest
from pipeline.errors import writing
from pipeline.telemetry import enter_stage
from pipeline.terminal import close_job, line_width, styled
from training.checkpoint.settings import NEWEST
from training.distributed.world import World
from training.evaluation import metrics, report
from training.evaluation.figure_table import figure_table
from training.evaluation.health import POSITIVES, alerts_of
from training.evaluation.observed_rate import observed_rates, sentences_of, sentences_of_slices
from training.evaluation.prediction_files import PredictionFiles
from training.evaluation.run_files import read_log
from training.evaluation.settings import FITTED_SPLIT
from training.evaluation.slices import evaluate_slices
from training.run.calibrate import evaluate_calibrated
from training.run.journal import ALERT, say
from training.run.malloc import return_freed_memory
from training.run.predict import IndependentCtr, predict_split, restore_model
from training.run.provenance import Provenance, ResultPaths, keep_earlier_result, provenance_of
from training.run.settings import TrainSettings
from training.run.sliced import slicings_of

#: A task holds so much memory for each impression while it is evaluated, and more where the true probabilities are known.
_BYTES_A_ROW, _BYTES_WITH_TRUTH = 16, 20
_METRICS_BYTES = 1_400_000_000


class Predicted(NamedTuple):
    """What `predict_run` has written, and from what."""

    paths: ResultPaths
    provenance: Provenance
    data: str
    manifest: Manifest


def evaluate_split(
    run: Path,
    settings: TrainSettings,
    split: str,
    truth: Path | None,
    world: World,
    which: str = NEWEST,
    data: str | None = None,
    ctr_run: Path | None = None,
    slices: Sequence[str] = (),
    *,
    calibrator: str | None = None,
) -> metrics.Metrics | None:
    """Write the predictions, metrics.json and report.html of an evaluation to a place of its own (`ResultPaths`).

    Returns the figures on rank 0, None elsewhere. `truth` is the simulator's file of true probabilities for the split;
    `which` checkpoint: newest, best or step-N. `data` is where the run's dataset is now, or another one, such as that of
    the next day. `ctr_run` is the independent CTR network, `slices` are names of `sliced_fields`. `calibrator` is fitted on
    the validation split, which is evaluated first. Raises InputError for a run without a checkpoint, for a dataset with
    another schema, and where the run's own dataset has been replaced.
    """
    if calibrator is not None:
        evaluate_split(run, settings, FITTED_SPLIT, None, world, which, data, ctr_run)
    enter_stage("predict")
    predicted = predict_run(run, settings, split, truth, world, which, data, ctr_run, slices)
    if world.rank:
        return None
    return_freed_memory()
    enter_stage("evaluate")
    return evaluate_predictions(run, split, predicted.paths, predicted.provenance, predicted, slices, calibrator)


def evaluate_predictions(
    run: Path,
    split: str,
    paths: ResultPaths,
    provenance: Provenance,
    predicted: Predicted | None = None,
    slices: Sequence[str] = (),
    calibrator: str | None = None,
) -> metrics.Metrics:
    """Evaluate the predictions at `paths`, write metrics.json and report.html beside them, and return the figures.

    `slices` need `predicted`, whose dataset knows their raw ids, and a `calibrator` the predictions of validation.
    """
    started = time.monotonic()
    predictions = PredictionFiles(paths.predictions, f"evaluate run={run} split={split} again.")
    true = predictions.true_columns()
    num_threads = threads_for(predictions.num_rows, true is not None)
    evaluated = metrics.evaluate_with_curves(predictions, true, num_threads, predictions.contexts)
    figures = evaluated.metrics
    reasons = metrics.reasons_undefined(figures, predictions)
    for reason in dict.fromkeys(reasons.values()):
        say(f"{', '.join(name for name in reasons if reasons[name] == reason)}: undefined, for {reason}.")
    rates = observed_rates(evaluated.curves, evaluated.intervals)
    alerts = alerts_of(figures, evaluated.curves, read_log(run / "log.jsonl")[0])
    in_words = sentences_of(rates, POSITIVES)
    for line in (*in_words, *(f"{styled(ALERT, 'red', sys.stderr)} {alert.text}" for alert in alerts)):
        say(line)
    saved: dict[str, Any] = {"split": split, **figures, **({"undefined": reasons} if reasons else {})}
    saved |= {
        "intervals": evaluated.intervals,
        "observed_rates": {task: [rate.as_json() for rate in of_task] for task, of_task in rates.items()},
        "calibration_in_words": in_words,
        "alerts": [alert._asdict() for alert in alerts],
    }
    if slices and predicted and evaluated.users:
        slicings = slicings_of(slices, predictions, evaluated.users, predicted.data, predicted.manifest)
        saved["slices"] = evaluate_slices(predictions, slicings)
        off = sentences_of_slices(saved["slices"], POSITIVES)
        saved["calibration_in_words"] = [*in_words, *off]
        for line in off:
            say(line)
    if true is not None:
        saved["cvr_by_click_propensity"] = metrics.cvr_by_click_propensity(predictions, true)
    if calibrator is not None:
        saved["calibrated"] = evaluate_calibrated(calibrator, run, predictions, provenance, num_threads)
        for line in saved["calibrated"]["calibration_in_words"]:
            say(f"calibrator={calibrator}: {line}")
    saved["provenance"] = provenance
    with writing(f"The figures of run={run}", "copy the run to another place"):
        for path in paths.metrics:
            write_whole(path, json.dumps(saved, indent=1) + "\n")
        report.write_report(run, saved, evaluated.curves, paths.report)
    print("\n".join(figure_table(figures, evaluated.intervals, line_width(sys.stdout))), flush=True)
    close_job("evaluated", str(paths.metrics[-1]), time.monotonic() - started, pages=[str(paths.report)])
    return figures


def threads_for(num_rows: int, has_truth: bool) -> int:
    """Choose how many tasks are evaluated at a time: as many as there are cores, within 1.4 GB of memory."""
    bytes_a_row = _BYTES_WITH_TRUTH if has_truth else _BYTES_A_ROW
    return max(1, min(len(os.sched_getaffinity(0)), _METRICS_BYTES // max(1, bytes_a_row * num_rows)))


def predict_run(
    run: Path,
    settings: TrainSettings,
    split: str,
    truth: Path | None,
    world: World,
    which: str = NEWEST,
    data: str | None = None,
    ctr_run: Path | None = None,
    slices: Sequence[str] = (),
) -> Predicted:
    """Write the predictions of an evaluation; the model and its tables are freed on return."""
    restored = restore_model(run, settings, split, world, which, data)
    independent = IndependentCtr.of(ctr_run, split, world, restored.data) if ctr_run else None
    with world.agreeing():
        provenance = provenance_of(
            run,
            restored.checkpoint,
            which,
            split,
            restored.data,
            restored.manifest_xxh3,
            truth,
            (independent.run, independent.restored.checkpoint) if independent else None,
        )
        paths = ResultPaths.of(run, provenance)
        if world.rank == 0:
            say(
                f"{run}, {restored.checkpoint.path.name}, on split={split}: ranks={world.size}, threads of each: "
                f"{torch.get_num_threads()}; cores of this process: {len(os.sched_getaffinity(0))}"
            )
            if kept := keep_earlier_result(run, provenance):
                say(f"The earlier result of this split is kept in {kept}.")
    predict_split(restored, settings, split, truth, world, paths.predictions, provenance, independent, slices)
    return Predicted(paths, provenance, restored.data, restored.manifest)
