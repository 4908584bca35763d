import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from graphs import ESM2
from ranks import Arrays, run_ranks
from tiny_dataset import write_manifest, write_tiny_dataset
from tiny_run import tiny_settings

from pipeline.dataset.manifest import Manifest, load_manifest
from pipeline.errors import InputError
from training.distributed.world import join
from training.evaluation import metrics
from training.model.settings import GraphSettings
from training.run.evaluate import evaluate_split
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
    table = pq.read_table(run / "predictions" / split).sort_by("impression_id")
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


def test_two_ranks_predict_what_one_does(trained: tuple[TrainSettings, Manifest], tmp_path: Path) -> None:
    settings, _ = trained
    judged(settings)
    alone = rows_of(Path(settings.out))
    ranks = run_ranks(judged_by_many, 2, tmp_path, settings)
    assert [bool(rank["found"]) for rank in ranks] == [True, False]
    together = rows_of(Path(settings.out))
    for name, column in alone.items():
        if name.startswith("p_"):
            np.testing.assert_allclose(together[name], column, rtol=1e-5)
        else:
            np.testing.assert_array_equal(together[name], column)


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
        evaluate_split(Path(settings.out), settings, "test", None, world, data=str(data))
    return rows_of(Path(settings.out))


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
