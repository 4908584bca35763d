"""Fit the trees of a run, predict a split with them, and evaluate it as any other run's."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.atomic_files import write_whole, xxh3_of
from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError, reason_of, writing
from pipeline.release import release
from training.evaluation.metrics import Metrics
from training.evaluation.prediction_files import PredictionFiles
from training.feed.batch import Batch
from training.feed.feed import Feed
from training.feed.plan import Plan
from training.gbdt.features import Features
from training.gbdt.settings import CTR, CVR, GbdtSettings
from training.gbdt.trees import fit_trees, load_trees, load_xgboost, predict_trees
from training.run.evaluate import evaluate_predictions
from training.run.journal import say
from training.run.predict import prediction_table, write_predictions
from training.run.provenance import METADATA_KEY, ResultPaths
from training.run.run_folder import lock_run

TREES, FITTED = "trees.json", "gbdt.json"
_BATCH = 16_384
_LABEL = {CVR: "conversion", CTR: "click"}
#: Settings that change no tree.
_NOT_FITTED = ("data", "out", "split", "ctr_run", "threads")


def run_gbdt(settings: GbdtSettings) -> Metrics:
    """Fit the trees unless they are there, predict `settings.split`, write metrics.json and report.html, and return the figures.

    Raises InputError where XGBoost is not installed, where `out` has trees of other settings or of another dataset, and where
    ctr_run has no predictions of the split.
    """
    load_xgboost()
    manifest, out = load_manifest(settings.data), Path(settings.out)
    manifest.files_of(settings.split)
    with lock_run(out):
        features = _counted(settings, manifest)
        trees = _fitted(settings, manifest, features)
        paths = ResultPaths.default(out, settings.split)
        provenance = {
            "run": out.resolve().name,
            "checkpoint": TREES,
            "checkpoint_xxh3": _xxh3_of_trees(out),
            "split": settings.split,
            "data": settings.data,
            "manifest_xxh3": manifest.xxh3,
            "trained_on_manifest_xxh3": manifest.xxh3,
            "truth": None,
            "version": release(),
        }
        tables = _predicted(settings, manifest, features, trees)
        with writing(f"The predictions of out={out}", "choose another folder"):
            _replace_folder(paths.predictions, tables, {METADATA_KEY: json.dumps(provenance)})
        return evaluate_predictions(out, settings.split, paths, provenance)


def _batches(settings: GbdtSettings, manifest: Manifest, split: str, unit: str) -> Iterator[Batch]:
    """Yield the split in the order of its files; bags keep the weights of the log."""
    plan = Plan(manifest.files_of(split), batch_size=_BATCH, lanes=1, seed=None, unit=unit)
    pooling = {entry.name: "sum" for entry in manifest.fields}
    feed = Feed(settings.data, manifest, split, plan, rank=0, world_size=1, pooling=pooling)
    yield from feed.batches(0)


def _unit(settings: GbdtSettings) -> str:
    return "clicks" if settings.target == CVR else "impressions"


def _counted(settings: GbdtSettings, manifest: Manifest) -> Features:
    """Count the ids of what the trees learn from."""
    features = Features(manifest, settings.folds, settings.smoothing)
    for batch in _batches(settings, manifest, "train", _unit(settings)):
        features.count(batch, batch.labels[_LABEL[settings.target]].numpy())
    return features


def _fitted(settings: GbdtSettings, manifest: Manifest, features: Features) -> Any:
    """Return the trees of the run, fitted now unless they are there."""
    out = Path(settings.out)
    fitted_by = {name: value for name, value in asdict(settings).items() if name not in _NOT_FITTED}
    found = _read_fitted(out)
    if found is not None:
        was, now = {**found["settings"], "manifest": found["manifest_xxh3"]}, {**fitted_by, "manifest": manifest.xxh3}
        for key in now:
            if was.get(key) != now[key]:
                raise InputError(
                    f"out={out} has trees of {key}={was.get(key)} and this command says {now[key]}; choose another out=…."
                )
        say(f"{out} has its trees already.")
        return load_trees(out / TREES)
    num_rows = manifest.totals["train"][_unit(settings)]
    columns, label = np.empty((num_rows, len(features.names)), np.float32), np.empty(num_rows, np.float32)
    at = 0
    for batch in _batches(settings, manifest, "train", _unit(settings)):
        end = at + batch.num_impressions
        columns[at:end] = features.columns_of(batch, learning=True)
        label[at:end] = batch.labels[_LABEL[settings.target]].numpy()
        at = end
    if not 0 < label.sum() < num_rows:
        raise InputError(
            f"The {num_rows} {_unit(settings)} of the train split are of one class; trees have nothing to learn."
        )
    trees = fit_trees(settings, columns, label, features.names)
    say(f"{settings.trees.number} trees on {num_rows:,} {_unit(settings)} and {columns.shape[1]} columns")
    _write_trees(out, trees, {"settings": fitted_by, "manifest_xxh3": manifest.xxh3})
    return trees


def _write_trees(out: Path, trees: Any, fitted: dict[str, Any]) -> None:
    """Write the trees, then what they were fitted by: a kill in between leaves no trees."""
    with writing(f"out={out}", "choose another folder"):
        staging = out / f".tmp.{TREES}"
        trees.save_model(staging)
        os.replace(staging, out / TREES)
        write_whole(out / FITTED, json.dumps(fitted | {"trees_xxh3": _xxh3_of_trees(out)}, indent=1) + "\n")


def _read_fitted(out: Path) -> dict[str, Any] | None:
    """Read what the trees of `out` were fitted by; None without trees. Raises InputError where either file has changed."""
    path = out / FITTED
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {*found} != {"settings", "manifest_xxh3", "trees_xxh3"} or found["trees_xxh3"] != _xxh3_of_trees(out):
            raise ValueError(f"it is not of this {TREES}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be used ({reason_of(error)}); delete it to fit the trees again.") from error
    return found


def _xxh3_of_trees(out: Path) -> str:
    with (out / TREES).open("rb") as stream:
        return xxh3_of(stream)


def _predicted(settings: GbdtSettings, manifest: Manifest, features: Features, trees: Any) -> Iterator[pa.Table]:
    """Yield the predictions of the split: p_ctr, or p_cvr and, with pCTR of ctr_run, p_ctr and p_ctcvr."""
    click = _PCtrOfRun(Path(settings.ctr_run), settings.split) if settings.ctr_run else None
    for batch in _batches(settings, manifest, settings.split, "impressions"):
        columns = features.columns_of(batch, learning=settings.split == "train")
        predicted = torch.from_numpy(predict_trees(trees, columns, features.names))
        outputs = {f"p_{settings.target}": predicted}
        if click:
            p_ctr = torch.from_numpy(click.of(batch.impression_id.numpy()))
            outputs = {"p_ctr": p_ctr, **outputs, "p_ctcvr": p_ctr * predicted}
        yield prediction_table(batch, outputs)


class _PCtrOfRun:
    """pCTR of every impression of a split, as another run has predicted it."""

    def __init__(self, run: Path, split: str) -> None:
        self._run, remedy = run, f"predict it with jobs.gbdt target=ctr split={split} or jobs.evaluate."
        predictions = PredictionFiles(run / "predictions" / split, remedy)
        if "p_ctr" not in predictions:
            raise InputError(
                f"ctr_run={run} has no p_ctr in its predictions of split={split}; give a run of target=ctr."
            )
        order = np.argsort(predictions["impression_id"], kind="stable")
        self._ids, self._p_ctr = predictions["impression_id"][order], predictions["p_ctr"][order].astype(np.float32)
        if (np.diff(self._ids) == 0).any():
            raise InputError(
                f"ctr_run={run} has two predictions of one impression_id, so pCTR of an impression is not known; preprocess with "
                "checks.duplicates=global."
            )

    def of(self, impression_id_B: np.ndarray) -> np.ndarray:
        place_B = np.minimum(self._ids.searchsorted(impression_id_B), max(0, len(self._ids) - 1))
        if not len(self._ids) or (self._ids[place_B] != impression_id_B).any():
            raise InputError(f"ctr_run={self._run} lacks impressions of this split; give a run on the same dataset.")
        return self._p_ctr[place_B]


def _replace_folder(final: Path, tables: Iterator[pa.Table], metadata: dict[bytes, str]) -> None:
    """Write the predictions beside `final`, then put them in its place."""
    staging = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_predictions(staging / "part-00000.parquet", tables, metadata)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(staging, final)
