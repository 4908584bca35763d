"""The scorer gives what evaluation gives: rows of a dataset through the feed and FBGEMM, and through the served network."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

import training
from jobs.entry import compose
from pipeline.dataset.manifest import Manifest, load_manifest
from training.distributed.world import join
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

#: These train the networks of base, ctr and esmm, on samples, with weights, or with wider layers.
AS_OTHERS = {"aman", "oversampling", "unbias", "unbias_weighted", "dnn", "dnn_os", "dnn_ctr", "dnn_os_ctr", "esmm_deep"}
MODELS = sorted({path.stem for path in (Path(__file__).parents[3] / "conf" / "model").glob("*.yaml")} - AS_OTHERS)
# Each way of the towers and of the graph; make test-acceptance takes the others.
FEW = ("base", "esm2", "esmm_ns", "ple")
ALL = [
    model if model in FEW else pytest.param(model, marks=[pytest.mark.slow, pytest.mark.acceptance]) for model in MODELS
]
TOLERANCE = 1e-6
SMALL = ("plan.batch_size=64", "world.device=cpu", "embedding.dims.item_id=3", "embedding.poolings.user_brands=mean",
         "embedding.poolings.item_intention=mean", "embedding.init_bound=0.8")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "data"
    write_tiny_dataset(path, num_contexts=90, numeric=True, daction=True)
    return path


def trained(settings: TrainSettings) -> None:
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    with join(settings.world) as world:
        evaluate_split(Path(settings.out), settings, "test", None, world)


def evaluated(run: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(run / "predictions" / "test").sort_by("impression_id")
    return {name: table[name].to_numpy() for name in table.column_names if name.startswith(("p_", "impression_id"))}


def scored(scorer: "training.serving.scorer.Scorer", data: Path) -> dict[str, np.ndarray]:
    """Score the rows of the test split, and sort them by impression_id."""
    manifest: Manifest = load_manifest(data)
    parts = []
    for file in manifest.files_of("test"):
        table = pq.read_table(data / file.path)
        ids = table["impression_id"].combine_chunks().flatten().to_numpy()
        parts.append({"impression_id": ids, **scorer.predict_table(table)})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["impression_id"])
    return {name: values[order] for name, values in joined.items()}


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    settings = tiny_settings(data, path)
    settings.embedding.init_bound = 0.8
    trained(settings)
    return path


@pytest.mark.parametrize("model", ALL)
def test_every_model_scores_rows_as_evaluation_does(data: Path, tmp_path: Path, model: str) -> None:
    small = ["model.towers.hidden=[12,8]", "model.towers.dropout=0.5"] if model == "esm2" else []
    settings = compose(
        "train", TrainSettings, [f"data={data}", f"out={tmp_path / 'run'}", f"model={model}", *SMALL, *small]
    )
    trained(settings)
    expected = evaluated(tmp_path / "run")
    scorer = training.load(tmp_path / "run")
    found = scored(scorer, data)
    assert set(found) == set(expected) == {"impression_id", *scorer.outputs}
    np.testing.assert_array_equal(found["impression_id"], expected["impression_id"])
    for name in scorer.outputs:
        assert np.ptp(expected[name]) > 1e-3
        wanted = np.minimum(expected[name], 1.0)  # a quotient may exceed 1, and a score does not
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=TOLERANCE, err_msg=name)


def test_the_scorer_loads_no_spark_petastorm_or_torchrec_and_joins_no_process_group(run: Path) -> None:
    code = """
import sys, training, torch.distributed as dist
scorer = training.load(sys.argv[1])
scorer.predict({"user_id": 1005}, [{"item_id": "1007"}, {}])
print(sorted({"pyspark", "petastorm", "torchrec", "fbgemm_gpu"} & set(sys.modules)), dist.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("[] False\n", "")


def test_raw_values_score_as_the_rows_that_they_stand_for(data: Path, run: Path) -> None:
    scorer, manifest = training.load(run), load_manifest(data)
    table = pq.read_table(data / manifest.files_of("test")[0].path)
    expected = scorer.predict_table(table)
    contexts, candidates = [], []
    for row in table.to_pylist():
        contexts.append(raw_values(manifest, "context", row, [row])[0])
        candidates.append(raw_values(manifest, "impression", row, row["impression_id"]))
    found = scorer.predict(contexts, candidates)
    one = [scorer.predict(context, chosen) for context, chosen in zip(contexts, candidates, strict=True)]
    for name in scorer.outputs:
        np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(np.concatenate([part[name] for part in one]), expected[name], rtol=0, atol=TOLERANCE)


def raw_values(manifest: Manifest, scope: str, row: dict[str, Any], records: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the raw values that a context, or the impressions, of a row of the tiny dataset had in a log."""
    found: list[dict[str, Any]] = [{} for _ in records]
    for entry in manifest.fields_of(scope):
        at = 0
        for place, record in enumerate(found):
            values = row[entry.name] if scope == "impression" else [row[entry.name]]
            if entry.arity == "one":
                record[entry.name] = values[place] if entry.kind == "numeric" else raw_id(values[place], place)
                continue
            length = row[f"{entry.name}__length"][place] if scope == "impression" else len(row[entry.name])
            record[entry.name] = [raw_id(index, at) for index in row[entry.name][at : at + length]]
            if entry.weighted:
                record[f"{entry.name}__weight"] = row[f"{entry.name}__weight"][at : at + length]
            at += length
    return found


def raw_id(index: int, number: int) -> Any:
    """Return what has this index in the tiny dataset's vocabularies, as a number or as text."""
    if index == 0:
        return None
    value = 7 if index == 1 else 1000 + index
    return str(value) if number % 2 else value


def test_the_lines_of_the_documentation_score(run: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"RUN"', repr(str(run))), names)
    assert [values.shape for values in names["scores"].values()] == [(3,)] * 3
