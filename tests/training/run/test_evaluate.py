import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from graphs import ESM2
from ranks import Arrays, run_ranks
from tiny_dataset import write_manifest, write_tiny_dataset
from tiny_run import tiny_settings
from torch import Tensor

from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError
from training.distributed.world import join
from training.evaluation import metrics, report
from training.model.graph import Graph
from training.model.settings import GraphSettings
from training.run import evaluate as evaluate_module
from training.run.evaluate import evaluate_split, predict_run
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, Manifest]:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("evaluate")
    manifest = write_tiny_dataset(folder / "data", num_contexts=120)
    settings = tiny_settings(folder / "data", folder / "run")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    return settings, manifest


def judged(settings: TrainSettings, split: str = "test", truth: Path | None = None) -> metrics.Metrics | None:
    with join(settings.world) as world:
        return evaluate_split(Path(settings.out), settings, split, truth, world)


def judged_by_many(settings: TrainSettings) -> Arrays:
    return {"found": np.array(judged(settings) is not None)}


def rows_of(run: Path, split: str = "test") -> dict[str, np.ndarray]:
    return rows_below(run / "predictions" / split)


def rows_below(folder: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(folder).sort_by("impression_id")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def dataset_rows(settings: TrainSettings, manifest: Manifest, split: str) -> dict[int, tuple[str, int, int]]:
    """impression_id → (context_id, click, conversion), straight from the Parquet."""
    rows: dict[int, tuple[str, int, int]] = {}
    for file in manifest.files_of(split):
        for context in pq.read_table(f"{settings.data}/{file.path}").to_pylist():
            labels = zip(context["impression_id"], context["click"], context["conversion"], strict=True)
            rows |= {key: (context["context_id"], click, conversion) for key, click, conversion in labels}
    return rows


def test_every_impression_of_the_split_is_predicted_once_with_its_own_labels(
    trained: tuple[TrainSettings, Manifest],
) -> None:
    settings, manifest = trained
    figures = judged(settings)
    rows, expected = rows_of(Path(settings.out)), dataset_rows(settings, manifest, "test")
    assert rows["impression_id"].tolist() == sorted(expected)
    for number, key in enumerate(rows["impression_id"]):
        found = (rows["context_id"][number], rows["click"][number], rows["conversion"][number])
        assert found == expected[key]
    np.testing.assert_allclose(rows["p_ctcvr"], rows["p_ctr"] * rows["p_cvr"], rtol=1e-5)
    assert figures is not None
    assert figures["num_impressions"] == len(expected)
    saved = json.loads((Path(settings.out) / "metrics.json").read_text())
    assert saved["split"] == "test"
    assert saved["ctr_auc"] == figures["ctr_auc"]
    assert (Path(settings.out) / "report.html").exists()


def test_calibration_and_alerts_are_on_the_terminal_in_the_metrics_and_in_the_report(
    trained: tuple[TrainSettings, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, _ = trained
    run = Path(settings.out)
    with (run / "log.jsonl").open("a") as log:  # a loss that diverged after the last step
        for step in range(1000, 1060):
            log.write(json.dumps({"step": step, "loss": 1.0, "loss_click": 0.2 if step < 1050 else 9.0}) + "\n")
    judged(settings)
    said, saved, page = capsys.readouterr().err, json.loads((run / "metrics.json").read_text()), run / "report.html"
    rows = rows_of(run)
    clicked = rows["click"] == 1
    for task, label, score in (
        ("ctr", rows["click"], rows["p_ctr"]),
        ("cvr", rows["conversion"][clicked], rows["p_cvr"][clicked]),
        ("ctcvr", rows["conversion"], rows["p_ctcvr"]),
    ):
        overall, *slices = saved["observed_rates"][task]
        assert (overall["num_impressions"], overall["observed"]) == (len(label), label.sum())
        assert overall["ratio"] == pytest.approx(label.sum() / score.astype(float).sum())
        assert overall["low"] < overall["ratio"] < overall["high"]
        assert sum(one["observed"] for one in slices) == overall["observed"]
    assert len(saved["calibration_in_words"]) == 3
    (alert,) = (alert for alert in saved["alerts"] if alert["kind"] == "diverged")
    for line in (*saved["calibration_in_words"], alert["text"]):
        assert line in said
        assert line in page.read_text()
    assert saved["provenance"]["weights"] == "average"


def test_two_ranks_predict_what_one_does(trained: tuple[TrainSettings, Manifest], tmp_path: Path) -> None:
    settings, _ = trained
    judged(settings)
    alone = rows_of(Path(settings.out))
    figures = (Path(settings.out) / "metrics.json").read_bytes()
    ranks = run_ranks(judged_by_many, 2, tmp_path, settings)
    assert [bool(rank["found"]) for rank in ranks] == [True, False]
    together = rows_of(Path(settings.out))
    for name, column in alone.items():
        np.testing.assert_array_equal(together[name], column, err_msg=name)
    assert (Path(settings.out) / "metrics.json").read_bytes() == figures


def test_the_truth_of_a_simulated_log_gives_figures_over_all_impressions(
    trained: tuple[TrainSettings, Manifest], tmp_path: Path
) -> None:
    settings, manifest = trained
    expected = dataset_rows(settings, manifest, "test")
    random = np.random.default_rng(0)
    truth = {"impression_id": np.array(list(expected)), "p_ctr": random.random(len(expected))}
    truth["p_cvr"] = random.random(len(expected))
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    figures = judged(settings, truth=tmp_path / "truth.parquet")
    assert figures is not None
    rows = rows_of(Path(settings.out))
    at = {key: place for place, key in enumerate(truth["impression_id"].tolist())}
    np.testing.assert_array_equal(
        rows["true_p_cvr"], truth["p_cvr"][[at[key] for key in rows["impression_id"].tolist()]]
    )
    assert figures["cvr_all_bias"] == pytest.approx(rows["p_cvr"].mean() - rows["true_p_cvr"].mean(), abs=1e-6)
    assert {"true_ctr_auc", "true_cvr_auc", "true_ctcvr_auc", "cvr_all_auc", "cvr_all_log_loss"} <= figures.keys()

    pq.write_table(pa.table(truth).slice(5), tmp_path / "short.parquet")
    with pytest.raises(InputError, match="The truth lacks impression_id="):
        judged(settings, truth=tmp_path / "short.parquet")
    with pytest.raises(InputError, match="cannot be read"):
        judged(settings, truth=tmp_path / "nothing.parquet")
    pq.write_table(pa.table({"p_ctr": [0.1]}), tmp_path / "thin.parquet")
    with pytest.raises(InputError, match="lacks impression_id, p_ctr or p_cvr"):
        judged(settings, truth=tmp_path / "thin.parquet")
    assert (Path(settings.out) / "predictions" / "test").is_dir()  # the good ones are still there


def test_each_split_keeps_its_figures(trained: tuple[TrainSettings, Manifest]) -> None:
    settings, _ = trained
    run = Path(settings.out)
    judged(settings, "validation")
    judged(settings, "test")
    validation, test = (json.loads((run / f"metrics.{split}.json").read_text()) for split in ("validation", "test"))
    assert (validation["split"], test["split"]) == ("validation", "test")
    assert json.loads((run / "metrics.json").read_text()) == test


def test_what_cannot_be_evaluated_is_refused(trained: tuple[TrainSettings, Manifest], tmp_path: Path) -> None:
    settings, _ = trained
    with pytest.raises(InputError, match="split=tset is not one of train, validation, test"):
        judged(settings, "tset")
    with pytest.raises(InputError, match="has no whole checkpoint yet"):
        judged(replace(settings, out=str(tmp_path / "empty")))
    write_tiny_dataset(tmp_path / "other", num_contexts=120, seed=2)
    with pytest.raises(InputError, match="is not the dataset that"):
        judged(replace(settings, data=str(tmp_path / "other")))
    other = write_tiny_dataset(tmp_path / "narrow", num_contexts=120)
    write_manifest(tmp_path / "narrow", replace(other, fields=other.fields[:-1]))
    with pytest.raises(InputError, match=r"cannot go on with data=\S+narrow: the field user_item_brands is gone"):
        elsewhere(settings, tmp_path / "narrow")


def elsewhere(settings: TrainSettings, data: Path) -> dict[str, np.ndarray]:
    with join(settings.world) as world:
        predicted = predict_run(Path(settings.out), settings, "test", None, world, data=str(data))
    return rows_below(predicted.paths.predictions)


def test_another_days_dataset_is_evaluated_by_raw_ids_without_the_one_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same impressions, whose manifest and means differ: the model sees what it was trained with."""
    data, moved, other = (tmp_path / name for name in ("data", "moved", "other"))
    write_tiny_dataset(data, num_contexts=60, numeric=True)
    settings = tiny_settings(data, tmp_path / "run")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    judged(settings)
    expected = rows_of(tmp_path / "run")
    shutil.copytree(data, other)
    data.rename(moved)
    manifest = load_manifest(other)
    shifted = [replace(entry, mean=entry.mean and entry.mean + 1.0) for entry in manifest.fields]
    write_manifest(other, replace(manifest, fields=tuple(shifted)))
    capsys.readouterr()
    for place, is_said in ((moved, False), (other, True)):
        found = elsewhere(settings, place)
        for name, column in expected.items():
            np.testing.assert_array_equal(found[name], column, err_msg=name)
        assert ("is not the dataset that" in capsys.readouterr().err) == is_said
    (tmp_path / "run/dataset/manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"run/dataset, the copy that run=.* keeps, is damaged"):
        elsewhere(settings, other)


@pytest.mark.parametrize(
    ("graph", "train_on", "columns"),
    [
        (ESM2, "impressions", ["p_ctr", "p_ctavr", "p_cvr", "p_ctcvr"]),
        (
            GraphSettings(["conversion | click"], ["conversion | click"], {"p_cvr": "conversion | click"}),
            "clicks",
            ["p_cvr"],
        ),
    ],
)
def test_esm2_and_base_train_and_predict_what_their_graphs_name(
    tmp_path: Path, graph: GraphSettings, train_on: str, columns: list[str]
) -> None:
    manifest = write_tiny_dataset(tmp_path / "data", num_contexts=80, daction=True)
    settings = tiny_settings(tmp_path / "data", tmp_path / "run", batch_size=16, epochs=2)
    settings.model.graph, settings.model.train_on = graph, train_on
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        trainer.fit()
        assert sum(map(trainer.plan.step_size, range(trainer.plan.num_steps))) == manifest.totals["train"][train_on]
    figures = judged(settings)
    rows = rows_of(tmp_path / "run")
    assert [name for name in rows if name.startswith("p_")] == columns
    assert "daction" in rows
    assert len(rows["p_cvr"]) == manifest.totals["test"]["impressions"]
    assert figures is not None
    assert [f"{name.removeprefix('p_')}_auc" in figures for name in columns] == [True] * len(columns)


def test_what_is_undefined_is_null_with_its_reason_on_the_terminal_in_the_metrics_and_in_the_report(
    trained: tuple[TrainSettings, Manifest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, manifest = trained
    run, rows = Path(settings.out), dataset_rows(settings, manifest, "test")
    truth = {"impression_id": list(rows), "p_ctr": [0.5] * len(rows), "p_cvr": [0.5] * len(rows)}
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    predicted = Graph.predict

    def with_nan(graph: Graph, logits: Any) -> dict[str, Tensor]:
        columns = predicted(graph, logits)
        columns["p_cvr"][:2] = float("nan")
        return columns

    monkeypatch.setattr(Graph, "predict", with_nan)
    figures = judged(settings, truth=tmp_path / "truth.parquet")
    assert figures is not None
    assert figures["ctr_auc"] is not None
    saved = json.loads((run / "metrics.json").read_text())
    num_bad = int(np.isnan(rows_of(run)["p_cvr"]).sum())
    reason = f"p_cvr is NaN or infinite for {num_bad} of {len(rows)} impressions"
    for name in ("cvr_auc", "cvr_gauc", "cvr_log_loss", "cvr_auc_share", "cvr_all_auc", "cvr_all_bias"):
        assert figures[name] is saved[name] is None
        assert saved["undefined"][name] == reason
    assert saved["undefined"].keys() == {name for name, value in saved.items() if value is None}
    assert saved["undefined"]["ctr_auc_share"] == "the oracle's AUC is undefined or one half"
    assert f"undefined, for {reason}." in capsys.readouterr().err
    assert f"undefined, for {reason}." in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("click", "conversion", "reasons"),
    [
        ([0, 0, 0], [0, 0, 0], ("none of 3 impressions is a positive", "the split has no clicked impressions")),
        ([1, 1, 1], [0, 0, 0], ("all 3 impressions are positives", "none of 3 clicked impressions is a positive")),
        ([], [], ("the split has no impressions", "the split has no impressions")),
    ],
)
def test_a_split_of_one_class_says_which(click: list[int], conversion: list[int], reasons: tuple[str, str]) -> None:
    columns: dict[str, np.ndarray] = {"click": np.array(click, np.int8), "conversion": np.array(conversion, np.int8)}
    columns |= {name: np.full(len(click), 0.5, np.float32) for name in ("p_ctr", "p_cvr", "p_ctcvr")}
    columns["group_id"] = np.zeros(len(click), np.int64)
    true = {name: np.full(len(click), 0.5) for name in ("p_ctr", "p_cvr")}
    figures = metrics.evaluate(columns) | metrics.oracle_metrics(columns, true)
    found = metrics.reasons_undefined(figures, columns)
    assert (found["ctr_auc"], found["cvr_auc"]) == (found["ctr_gauc"], found["cvr_gauc"]) == reasons
    assert found.keys() == {name for name, value in figures.items() if value is None}


def test_predictions_or_figures_that_cannot_be_written_are_told_and_leave_nothing(
    trained: tuple[TrainSettings, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = trained
    run = Path(settings.out)
    judged(settings)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((pq.ParquetWriter, "write_table"), (evaluate_module, "write_whole"), (report, "write_whole")):
        before = {path: path.read_bytes() for path in (run / "predictions").rglob("*.parquet")}
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make room there"):
                judged(settings)
        assert {path: path.read_bytes() for path in (run / "predictions").rglob("*.parquet")} == before
        assert not list((run / "predictions").glob(".*"))
    (run / "predictions.away").mkdir()
    (run / "predictions").rename(run / "predictions.away" / "p")
    (run / "predictions").write_text("a file in the place of the folder")
    with pytest.raises(InputError, match=r"cannot be written \(.*\); remove the file that is in the place"):
        judged(settings)
    (run / "predictions").unlink()
