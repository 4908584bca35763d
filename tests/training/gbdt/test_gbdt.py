"""GBDT: its features against loops over the rows, its parameters against the paper, and a run from trees to figures."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from sklearn.metrics import roc_auc_score
from slow_reading import slow_reading
from tiny_dataset import FIELDS, write_tiny_dataset

from jobs.entry import compose
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from training.gbdt import run as gbdt
from training.gbdt.features import Features
from training.gbdt.run import run_gbdt
from training.gbdt.settings import GbdtSettings
from training.gbdt.trees import parameters_of

FOLDS, SMOOTHING = 3, 7.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    path = tmp_path_factory.mktemp("gbdt") / "data"
    return path, write_tiny_dataset(path, num_contexts=120, numeric=True)


def settings_of(data: Path, out: Path, *overrides: str) -> GbdtSettings:
    small = ["trees.number=12", "trees.depth=3", "trees.min_instances=4"]
    return compose("gbdt", GbdtSettings, [f"data={data}", f"out={out}", *small, *overrides])


def fold(row: dict[str, Any]) -> int:
    return xxhash.xxh3_64_intdigest(row["context_id"].encode()) % FOLDS


def rates(rows: list[dict[str, Any]], name: str, left_out: int | None) -> dict[int, tuple[int, int]]:
    """Id → instances and positives, of the clicked rows outside the fold `left_out`."""
    found: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        if fold(row) != left_out:
            for index, _ in row[name]:
                found[index][0] += 1
                found[index][1] += row["conversion"]
    return {index: (instances, positives) for index, (instances, positives) in found.items()}


def expected_columns(bag: list[tuple[int, float]], counts: dict[int, tuple[int, int]], mean: float) -> list[float]:
    total = sum(abs(weight) for _, weight in bag)
    if not total:
        return [np.nan, np.nan]
    rate = [
        (counts.get(index, (0, 0))[1] + SMOOTHING * mean) / (counts.get(index, (0, 0))[0] + SMOOTHING)
        for index, _ in bag
    ]
    count = [np.log1p(counts.get(index, (0, 0))[0]) for index, _ in bag]
    return [sum(abs(w) * v for (_, w), v in zip(bag, values, strict=True)) / total for values in (rate, count)]


@pytest.mark.parametrize("learning", [True, False])
def test_the_columns_are_rates_and_counts_of_the_ids_and_leave_the_own_fold_out_while_trees_learn(
    dataset: tuple[Path, Manifest], tmp_path: Path, learning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, manifest = dataset
    settings = settings_of(path, tmp_path)
    features = Features(manifest, FOLDS, SMOOTHING)
    monkeypatch.setattr("slow_reading.POOLING", dict.fromkeys(FIELDS, "sum"))
    rows = slow_reading(path, manifest)
    clicked = [row for row in rows.values() if row["click"]]
    for batch in gbdt._batches(settings, manifest, "train", "clicks"):
        features.count(batch, batch.labels["conversion"].numpy())
    mean = sum(row["conversion"] for row in clicked) / len(clicked)
    assert features.mean == pytest.approx(mean)
    by_fold = {(name, out): rates(clicked, name, out) for name in FIELDS for out in [*range(FOLDS), None]}
    names = features.names
    seen = 0
    for batch in gbdt._batches(settings, manifest, "train", "impressions"):
        columns = features.columns_of(batch, learning=learning)
        assert columns.shape == (batch.num_impressions, len(names))
        for impression_id, found in zip(batch.impression_id.tolist(), columns, strict=True):
            row = rows[impression_id]
            for name, (_, _, arity, _, _) in FIELDS.items():
                wanted = expected_columns(row[name], by_fold[name, fold(row) if learning else None], mean)
                if arity == "many":
                    wanted.append(sum(abs(weight) for _, weight in row[name]))
                at = names.index(f"{name}:rate")
                np.testing.assert_allclose(
                    found[at : at + len(wanted)], wanted, rtol=1e-5, err_msg=f"{name} {impression_id}"
                )
        at = names.index("impression:0")
        np.testing.assert_array_equal(columns[:, at], batch.impression_numeric.numpy()[:, 0])
        seen += len(columns)
    assert seen == len(rows)


def test_the_trees_have_the_papers_numbers_and_a_split_node_as_many_instances() -> None:
    """ESM² §4.1.3: 150 trees, depth 8, 20 instances to split, rows and features by 0.6, logistic loss."""
    settings = compose("gbdt", GbdtSettings, ["data=DATA", "out=OUT"])
    assert settings.trees.number == 150
    found = parameters_of(settings, 0.1)
    assert (found["objective"], found["max_depth"]) == ("binary:logistic", 8)
    assert (found["subsample"], found["colsample_bytree"]) == (0.6, 0.6)
    assert 2 * found["min_child_weight"] / (0.1 * 0.9) == pytest.approx(20)


def test_a_run_is_evaluated_like_any_other_and_multiplies_with_pctr_of_another(
    dataset: tuple[Path, Manifest], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, _ = dataset
    ctr = run_gbdt(settings_of(path, tmp_path / "ctr", "target=ctr"))
    cvr = run_gbdt(settings_of(path, tmp_path / "cvr", f"ctr_run={tmp_path / 'ctr'}"))
    rows = pq.read_table(tmp_path / "cvr" / "predictions" / "test").to_pylist()
    p_ctr = {
        row["impression_id"]: row["p_ctr"]
        for row in pq.read_table(tmp_path / "ctr" / "predictions" / "test").to_pylist()
    }
    for row in rows:
        assert row["p_ctr"] == p_ctr[row["impression_id"]]
        assert row["p_ctcvr"] == pytest.approx(row["p_ctr"] * row["p_cvr"], rel=1e-6)
    clicked = [row for row in rows if row["click"]]
    click, conversion = ([row[label] for row in rows] for label in ("click", "conversion"))
    assert (
        ctr["ctr_auc"]
        == cvr["ctr_auc"]
        == pytest.approx(roc_auc_score(click, list(map(p_ctr.get, (r["impression_id"] for r in rows)))))
    )
    assert ctr["ctr_auc"] > 0.6
    assert cvr["cvr_auc"] == pytest.approx(
        roc_auc_score([r["conversion"] for r in clicked], [r["p_cvr"] for r in clicked])
    )
    assert cvr["ctcvr_auc"] == pytest.approx(roc_auc_score(conversion, [row["p_ctcvr"] for row in rows]))
    saved = json.loads((tmp_path / "cvr" / "metrics.test.json").read_text())
    assert saved["ctcvr_auc"] == cvr["ctcvr_auc"]
    assert (tmp_path / "cvr" / "report.html").exists()
    trees = (tmp_path / "cvr" / "trees.json").read_bytes()
    again = run_gbdt(settings_of(path, tmp_path / "again"))
    assert (tmp_path / "again" / "trees.json").read_bytes() == trees
    assert again["cvr_auc"] == cvr["cvr_auc"]
    capsys.readouterr()
    run_gbdt(settings_of(path, tmp_path / "cvr", "split=validation"))
    assert "has its trees already" in capsys.readouterr().err


def test_what_does_not_fit_ends_in_one_sentence(
    dataset: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = dataset
    run_gbdt(settings_of(path, tmp_path / "run"))
    with pytest.raises(InputError, match=r"has trees of seed=1 and this command says 2"):
        run_gbdt(settings_of(path, tmp_path / "run", "seed=2"))
    with pytest.raises(InputError, match="has no predictions"):
        run_gbdt(settings_of(path, tmp_path / "run", f"ctr_run={tmp_path / 'none'}"))
    with pytest.raises(InputError, match="has no p_ctr in its predictions"):
        run_gbdt(settings_of(path, tmp_path / "run", f"ctr_run={tmp_path / 'run'}"))
    (tmp_path / "run" / "trees.json").write_text("{}")
    with pytest.raises(InputError, match=r"gbdt.json cannot be used .*it is not of this trees.json"):
        run_gbdt(settings_of(path, tmp_path / "run"))
    monkeypatch.setitem(__import__("sys").modules, "xgboost", None)
    with pytest.raises(InputError, match="needs XGBoost, which is no part of the installation"):
        run_gbdt(settings_of(path, tmp_path / "other"))


@pytest.mark.parametrize(
    "override",
    ["target=ctcvr", "split=all", "seed=-1", "threads=0", "smoothing=0", "folds=1", "trees.depth=0", "trees.number=0",
     "trees.row_share=0", "trees.learning_rate=2", "trees.min_instances=0", "trees.feature_share=nan"],
)  # fmt: skip
def test_a_setting_outside_its_rule_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=override.partition("=")[0].rpartition(".")[2]):
        compose("gbdt", GbdtSettings, ["data=d", "out=o", override])
