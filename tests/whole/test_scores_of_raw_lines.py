"""The raw lines of a log, read slowly and scored by training.load and by an export, against jobs.evaluate on the dataset.

The day before has another vocabulary, from which the run was begun (init_from). Fields of every kind of Ali-CCP's layout
are there: single- and multi-valued, weighted, hashed, numeric, bucketized; missing, unknown and repeated ones.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_log import random_log, shifted
from tiny_run import tiny_settings

import training
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.preprocess import preprocess
from training.distributed.world import join
from training.export.check import exported_model
from training.export.folder import export_run
from training.export.settings import ExportSettings
from training.run.evaluate import evaluate_split
from training.run.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.acceptance, pytest.mark.timeout(900)]
FIELDS = (
    "features=aliccp_numeric", "+features.fields.item_intention.hash_buckets=7", "vocabulary.min_count=3",
    "+features.fields.strength={raw_id: '702',scope: impression,kind: bucketized,boundaries: [0.0,0.7,2.0]}",
    "rows.max_impressions=8", "rows.impressions_per_row_group=50",
)  # fmt: skip


def test_raw_lines_score_as_their_rows_do_after_init_from_on_a_grown_vocabulary(
    spark: object, tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings]
) -> None:
    raws = [
        random_log(21, dirty=False).write(tmp_path / "raw1"),
        shifted(random_log(22, dirty=False), 15).write(tmp_path / "raw2"),
    ]
    preprocess(preprocess_settings(raws[0], tmp_path / "day1", *FIELDS))
    preprocess(preprocess_settings(raws[1], tmp_path / "day2", *FIELDS, f"vocabulary.base={tmp_path / 'day1'}"))
    for day, before in (("day1", None), ("day2", "run1")):
        settings = tiny_settings(tmp_path / day, tmp_path / day.replace("day", "run"), epochs=2)
        settings.embedding.init_bound, settings.embedding.poolings = 0.7, {"user_shops": "sum"}
        settings.init_from = str(tmp_path / before) if before else None
        with join(settings.world) as world:
            Trainer(settings, world).fit()
    with join(settings.world) as world:
        evaluate_split(tmp_path / "run2", settings, "test", None, world)
    table = pq.read_table(tmp_path / "run2" / "predictions" / "test")
    names = ["p_ctr", "p_cvr", "p_ctcvr"]
    expected = dict(
        zip(
            table["impression_id"].to_pylist(),
            zip(*(table[name].to_pylist() for name in names), strict=True),
            strict=True,
        )
    )
    manifest = load_manifest(tmp_path / "day2")
    assert (
        len(
            {entry.num_rows for entry in load_manifest(tmp_path / "day1").fields}
            ^ {entry.num_rows for entry in manifest.fields}
        )
        > 1
    )
    list(export_run(ExportSettings(run=str(tmp_path / "run2"), out=str(tmp_path / "export"), formats=["pt2", "onnx"])))
    models = [
        training.load(tmp_path / "run2"),
        *(exported_model(tmp_path / "export", name) for name in ("pt2", "onnx")),
    ]
    count = 0
    for context, ids, candidates in requests_of_log(raws[1], manifest):
        for model in models:
            found = model.predict(context, candidates)
            for place, impression in enumerate(ids):
                np.testing.assert_allclose(
                    [found[name][place] for name in names], expected[impression], rtol=0, atol=1e-6
                )
        count += len(ids)
    assert count == len(expected) > 300


def requests_of_log(raw: Path, manifest: Manifest) -> Iterator[tuple[dict[str, Any], list[int], list[dict[str, Any]]]]:
    """Yield each context of the test files with its impressions, as raw values."""
    contexts = {}
    for line in (raw / "common_features_test.csv").read_text().splitlines():
        key, _, features = line.split(",")
        contexts[key] = record_of(manifest, "context", features)
    impressions: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for line in (raw / "sample_skeleton_test.csv").read_text().splitlines():
        sample, _, _, key, _, features = line.split(",")
        impressions.setdefault(key, []).append((int(sample), record_of(manifest, "impression", features)))
    for key, chosen in impressions.items():
        yield contexts[key], [sample for sample, _ in chosen], [candidate for _, candidate in chosen]


def record_of(manifest: Manifest, scope: str, features: str) -> dict[str, Any]:
    """Read the features of a line, joined by \\x01, into the raw values of a request."""
    found: dict[str, Any] = {}
    for feature in features.split("\x01") if features else []:
        raw_name, _, rest = feature.partition("\x02")
        raw_id, _, weight = rest.partition("\x03")
        for entry in manifest.fields_of(scope):
            if entry.raw_id != raw_name:
                continue
            if entry.kind in ("numeric", "bucketized"):
                found.setdefault(entry.name, float(weight))
            elif entry.arity == "one":
                found.setdefault(entry.name, raw_id)
            else:
                found.setdefault(entry.name, []).append(raw_id)
                if entry.weighted:
                    found.setdefault(f"{entry.name}__weight", []).append(float(weight))
    return found
