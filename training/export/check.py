"""What an export is asked before it is published: do the feed, the Python scorer and the folder give the same?

rows of the dataset ── the feed, FBGEMM, one rank ── p      as jobs.evaluate predicts
their raw values ───── training.load ─────────────── p
their raw values ───── EXPORT/, each format ──────── p      by the files that a service runs
"""

# Shapes: B impressions.

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.dataset.manifest import LABELS, Manifest, dataset_files
from pipeline.errors import InputError
from training.checkpoint.restore import restore_to_predict
from training.distributed.rank_batches import rank_batches
from training.distributed.world import join
from training.evaluation.metrics import evaluate
from training.export.samples import SampleRequest
from training.feed.batch import UNKNOWN_GROUP
from training.feed.plan import Plan
from training.run.build import build_model, check_settings, for_predictions, open_feed, settings_to_predict
from training.run.settings import TrainSettings
from training.serving.scorer import Scorer

#: Of a probability, between two ways that compute in fp32; and for a run that multiplies in bfloat16, of 8 bits.
ALLOWED_DIFFERENCE = {"fp32": 1e-6, "tf32": 1e-6, "bf16": 2.0**-6}
_MOST_FOR_AUC = 1_000_000

ScoreColumns = dict[str, np.ndarray]


def scores_of_the_feed(
    settings: TrainSettings, scorer: Scorer, data: str, split: str, num_impressions: int
) -> tuple[np.ndarray, ScoreColumns]:
    """Predict the first impressions of a split as jobs.evaluate does: their ids, int64 [B], and output → float32 [B]."""
    manifest, files = scorer.manifest, scorer.manifest.files_of(split)
    ids, parts = [], []
    settings = for_predictions(settings_to_predict(settings))
    with join(settings.world) as world:
        graph = check_settings(settings, manifest, world.device)
        model = build_model(settings, manifest, graph, world)
        restore_to_predict(scorer.checkpoint, model)
        plan = Plan(files, batch_size=settings.plan.batch_size, lanes=1, seed=None)
        num_steps = min(plan.num_steps, -(-num_impressions // settings.plan.batch_size))
        feed = open_feed(replace(settings, data=data), manifest, split, plan, world)
        for rank_batch in rank_batches(feed, 0, range(num_steps), model.exchange, world.device):
            agreeing = rank_batch.start_agreement(world)
            found = graph.predict(model.predict(rank_batch.batch, rank_batch.ids))
            rank_batch.send_next()
            rank_batch.agreed(agreeing, world)
            ids.append(rank_batch.batch.impression_id.cpu().numpy())
            parts.append({name: values.float().cpu().numpy() for name, values in found.items()})
    return np.concatenate(ids)[:num_impressions], {
        name: np.concatenate([part[name] for part in parts])[:num_impressions] for name in parts[0]
    }


def answers_of(model: Any, samples: Sequence[SampleRequest]) -> ScoreColumns:
    """Ask `model.predict` each sample; return output → float32 of all candidates."""
    parts = [model.predict(sample.context, sample.candidates) for sample in samples]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def largest_difference(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """Return the largest difference of two scores and its output; infinity where one is no number or not there."""
    if set(expected) != set(found):
        return float("inf"), ", ".join(sorted(set(expected) ^ set(found)))
    worst = (0.0, next(iter(expected)))
    for name, values in expected.items():
        differences = np.abs(values.astype(np.float64) - found[name])
        largest = float(differences.max()) if np.isfinite(differences).all() else float("inf")
        worst = max(worst, (largest, name))
    return worst


def exported_model(folder: Path, runtime: str) -> Any:
    """Load the folder by the file that a service runs."""
    spec = importlib.util.spec_from_file_location("exported_scoring", folder / "scoring.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ExportedModel(folder, runtime)


def require_equal(
    what: str, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], precision: str
) -> float:
    """Return the largest difference. Raises InputError where it is above the tolerance: nothing is exported then."""
    largest, name = largest_difference(expected, found)
    if not largest <= ALLOWED_DIFFERENCE[precision]:
        raise InputError(
            f"The export is not right: {what} differ by {largest:.3g} in {name}, and {ALLOWED_DIFFERENCE[precision]:g} is allowed. "
            "Nothing is exported; report this with the run's config.yaml and manifest.json."
        )
    return largest


def aucs_of(scorers: Sequence[Scorer], data: str, manifest: Manifest, split: str) -> tuple[int, list[dict[str, float]]]:
    """Return how many impressions of a split were scored, at most a million, and each scorer's AUCs."""
    labels: list[dict[str, np.ndarray]] = []
    scores: list[list[ScoreColumns]] = [[] for _ in scorers]
    count = 0
    for table in _tables_of_split(data, manifest, split):
        ids = table["impression_id"].combine_chunks()
        columns = {
            name: table[name].combine_chunks().flatten().to_numpy() for name in LABELS if name in manifest.labels
        }
        labels.append(columns | {"group_id": np.full(len(ids.flatten()), UNKNOWN_GROUP)})
        for found, scorer in zip(scores, scorers, strict=True):
            found.append(scorer.predict_table(table))
        count += len(labels[-1]["group_id"])
        if count >= _MOST_FOR_AUC:
            break
    true = {name: np.concatenate([part[name] for part in labels]) for name in labels[0]}
    results = []
    for found in scores:
        predicted = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        figures = evaluate(true | predicted)
        results.append({name: value for name, value in figures.items() if name.endswith("_auc") and value is not None})
    return count, results


def _tables_of_split(data: str, manifest: Manifest, split: str) -> Iterator[Any]:
    files = dataset_files(data)
    for file in manifest.files_of(split):
        files.check_size(file.path, file.bytes)
        with files.open(file.path) as stream, files.readable(file.path), pq.ParquetFile(stream) as parquet:
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number)
