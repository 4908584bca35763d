"""Scores of a raw log and of a dataset by a stand-in for a model: the rows that it is given are those of preprocessing."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_log import ACTIONS, BOUNDARIES, EVENTS, IMPRESSIONS, write_parquet
from pyspark import cloudpickle
from raw_log import RawLog, key_of, random_log

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.config.score import ScoreSettings
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from pipeline.passes.scorer import TrainedModel
from pipeline.preprocess import preprocess
from pipeline.score import score

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Settings = Callable[..., PreprocessSettings]


def digest(row: Mapping[str, Any]) -> int:
    """Digest every value of an impression and of its context, and the order of its lists: what a model sees of it."""
    total = 0
    for name in sorted(row):
        for place, value in enumerate(np.atleast_1d(row[name] if row[name] is not None else [-1])):
            total = (total * 31 + round(float(value) * 1000) + place + len(name)) % 1_000_003
    return total


def impressions_of(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield each impression with the values of its context, one plain dictionary each; labels left out."""
    lengths = {name.removesuffix("__length") for name in rows.column_names if name.endswith("__length")}
    for row in rows.to_pylist():
        ids = row["impression_id"]
        starts = {name: np.cumsum([0, *row[f"{name}__length"]]) for name in lengths}
        for place in range(len(ids)):
            found: dict[str, Any] = {}
            for name, value in row.items():
                base = name.removesuffix("__weight")
                if name in ("context_id", "group_id", "click", "conversion", "daction") or name.endswith("__length"):
                    continue
                if base in starts:
                    found[name] = value[starts[base][place] : starts[base][place + 1]]
                elif isinstance(value, list) and len(value) == len(ids) and base in IMPRESSION_FIELDS:
                    found[name] = value[place]
                else:
                    found[name] = value
            yield found


#: Columns with one value an impression.
IMPRESSION_FIELDS = ("impression_id", "timestamp", "item_id", "item_category", "item_shop", "item_brand", "position")


@pytest.fixture(scope="module")
def raw() -> RawLog:
    return random_log(3, num_contexts=30)


@pytest.fixture(scope="module")
def directory(raw: RawLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw.write(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def dataset(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings, spark: "SparkSession"
) -> Path:
    out = tmp_path_factory.mktemp("dataset")
    preprocess(preprocess_settings(directory, out, "vocabulary.min_count=3"))
    return out


def model_of(dataset: Path, **origin: str) -> TrainedModel:
    """A model whose p_ctr is a digest of the impression; pickled by value, for Spark's workers do not import tests."""

    def open_scorer() -> Callable[[pa.Table], dict[str, np.ndarray]]:
        def scorer(rows: pa.Table) -> dict[str, np.ndarray]:
            found = np.array([digest(one) for one in impressions_of(rows)]) / 1_000_003
            return {"p_ctr": found.astype(np.float32), "p_cvr": 1 - found}

        return scorer

    origin = {"run": "RUN", "checkpoint": "step-00000005", "step": "5"} | origin
    return TrainedModel(open_scorer, ("p_ctr", "p_cvr"), str(dataset), load_manifest(dataset), origin)


def settings_of(out: Path, *words: str) -> ScoreSettings:
    return compose("score", ScoreSettings, ["run=RUN", f"out={out}", *words])


def expected(dataset: Path, *splits: str) -> dict[tuple[str, int], float]:
    """(context_id, impression_id) → p_ctr, from the files of the dataset."""
    found = {}
    for file in load_manifest(dataset).files:
        if file.split in splits:
            rows = pq.read_table(dataset / file.path)
            keys = [(row["context_id"], one) for row in rows.to_pylist() for one in row["impression_id"]]
            values = [digest(one) / 1_000_003 for one in impressions_of(rows)]
            found |= dict(zip(keys, values, strict=True))
    return found


def written(out: Path, part: str = "") -> dict[tuple[str, int], float]:
    """The same of scores, read as any reader would: by the folder."""
    table = pq.ParquetDataset(out / "scores" / part, partitioning=None).read()
    keys = zip(table["context_id"].to_pylist(), table["impression_id"].to_pylist(), strict=True)
    found = dict(zip(keys, table["p_ctr"].to_pylist(), strict=True))
    assert len(found) == table.num_rows
    return found


def assert_same(found: Mapping[Any, float], wanted: Mapping[Any, float]) -> None:
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[key] for key in wanted], list(wanted.values()), atol=1e-7)


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """Spark's workers cannot import this module: what they need of it travels with the task."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_labelled_log_gives_the_scores_of_its_dataset_and_quarantines_what_preprocessing_does(
    directory: Path, dataset: Path, tmp_path: Path, spark: "SparkSession"
) -> None:
    scores = score(settings_of(tmp_path, f"source.path={directory}", "impressions_per_batch=50"), model_of(dataset))
    assert_same(written(tmp_path, "period=test"), expected(dataset, "test"))
    assert_same(written(tmp_path, "period=train"), expected(dataset, "train", "validation"))
    ours, theirs = (json.loads((folder / "audit.json").read_text()) for folder in (tmp_path, dataset))
    assert ours["quarantined"] == theirs["quarantined"]
    assert ours["examples"] == theirs["examples"]
    assert ours["lines"]["test"] == theirs["lines"]["test"]
    assert scores.totals == {
        "train": len(expected(dataset, "train", "validation")),
        "test": len(expected(dataset, "test")),
    }
    assert {source.name: source.fingerprint for source in scores.sources} == {
        source.name: source.fingerprint for source in load_manifest(dataset).sources
    }
    metadata = pq.read_schema(tmp_path / scores.files[0].path).metadata
    assert (metadata[b"entirespace.checkpoint"], metadata[b"entirespace.step"]) == (b"step-00000005", b"5")
    assert metadata[b"entirespace.run"] == b"RUN"


@pytest.mark.parametrize("labels", [b"", b",,"])
def test_a_log_without_labels_and_periods_gives_the_same_scores(
    raw: RawLog, directory: Path, dataset: Path, tmp_path: Path, labels: bytes, spark: "SparkSession"
) -> None:
    unlabelled = tmp_path / "raw"
    unlabelled.mkdir()
    lines = [line.split(b",", 3) for line in raw.lines["sample_skeleton_test"]]
    rows = [
        b"".join([row[0], b",", labels, row[3]]) for row in lines if len(row) == 4 and {row[1], row[2]} <= {b"0", b"1"}
    ]
    (unlabelled / "sample_skeleton.csv").write_bytes(b"\n".join(rows) + b"\n")
    (unlabelled / "common_features.csv").write_bytes(b"\n".join(raw.lines["common_features_test"]) + b"\n")
    score(settings_of(tmp_path / "out", f"source.path={unlabelled}"), model_of(dataset))
    assert_same(written(tmp_path / "out"), expected(dataset, "test"))


def test_a_dataset_gives_the_scores_of_its_rows_and_another_one_those_of_its_raw_ids(
    directory: Path, dataset: Path, tmp_path: Path, preprocess_settings: Settings, spark: "SparkSession"
) -> None:
    scores = score(settings_of(tmp_path / "own", f"data={dataset}", "split=test"), model_of(dataset))
    assert_same(written(tmp_path / "own"), expected(dataset, "test"))
    assert scores.totals == {"test": len(expected(dataset, "test"))}
    preprocess(preprocess_settings(directory, tmp_path / "other", "vocabulary.min_count=1"))
    assert load_manifest(tmp_path / "other").fields != load_manifest(dataset).fields
    score(settings_of(tmp_path / "mapped", f"data={tmp_path / 'other'}", "split=validation"), model_of(dataset))
    assert_same(written(tmp_path / "mapped"), expected(dataset, "validation"))


def test_finished_scores_are_kept_and_others_need_overwrite(
    directory: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spark: "SparkSession"
) -> None:
    words = [f"data={dataset}", "split=validation"]
    first = score(settings_of(tmp_path, *words), model_of(dataset))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert score(settings_of(tmp_path, *words), model_of(dataset, run="moved")) == first
    assert "is already there, of this checkpoint and log; nothing to do." in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="finished scores made with another checkpoint or run"):
        score(settings_of(tmp_path, *words), model_of(dataset, step="6"))
    with pytest.raises(InputError, match="finished scores made with another log"):
        score(settings_of(tmp_path, f"data={dataset}", "split=test"), model_of(dataset))
    words = [f"data={dataset}", "split=test", "overwrite=true"]
    score(settings_of(tmp_path, *words), model_of(dataset))
    assert_same(written(tmp_path), expected(dataset, "test"))


def test_what_a_dead_job_left_is_removed_by_the_next_and_a_value_that_is_no_probability_stops_the_job(
    dataset: Path, tmp_path: Path, spark: "SparkSession"
) -> None:
    def open_scorer() -> Callable[[pa.Table], dict[str, np.ndarray]]:
        return lambda rows: {name: np.full(len(list(impressions_of(rows))), np.nan) for name in ("p_ctr", "p_cvr")}

    whole = model_of(dataset)
    broken = TrainedModel(open_scorer, whole.outputs, whole.dataset, whole.manifest, whole.origin)
    words = [f"data={dataset}", "split=validation"]
    with pytest.raises(InputError, match="p_ctr a value that is no probability"):
        score(settings_of(tmp_path, *words), broken)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "_lock"] == []
    left = tmp_path / "scores" / "part-00007-0123456789abcdef.parquet"
    for folder in (tmp_path / "scores", tmp_path / "_staging" / "dead"):
        folder.mkdir(parents=True)
    left.write_bytes(b"half")
    (tmp_path / "_staging" / "dead" / "part").write_bytes(b"half")
    score(settings_of(tmp_path, *words), whole)
    assert_same(written(tmp_path), expected(dataset, "validation"))
    assert not (tmp_path / "_staging").exists()


def test_unknown_ids_are_out_of_vocabulary(raw: RawLog, dataset: Path, tmp_path: Path, spark: "SparkSession") -> None:
    log = tmp_path / "raw"
    log.mkdir()
    feature = "205\x02{}\x031.0\x01702\x02{}\x030.5"
    lines = [f"{number},{key_of(1)},2,{feature.format(item, item)}" for number, item in ((1, 10**9), (2, 2 * 10**9))]
    (log / "sample_skeleton.csv").write_text("\n".join(lines) + "\n")
    (log / "common_features.csv").write_text(f"{key_of(1)},1,101\x0277777777\x031.0\n")
    score(settings_of(tmp_path / "out", f"source.path={log}"), model_of(dataset))
    table = pq.ParquetDataset(tmp_path / "out" / "scores").read()
    assert table["impression_id"].to_pylist() == [1, 2]
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["fields"]["item_id"]["train"]["out_of_vocabulary"] == 2
    assert audit["fields"]["user_id"]["train"]["out_of_vocabulary"] == 1
    assert table["group_id"].to_pylist() == [77777777, 77777777]


def test_impressions_without_actions_are_scored_whenever_they_were(
    tmp_path: Path, preprocess_settings: Settings, spark: "SparkSession"
) -> None:
    write_parquet(tmp_path / "raw", "impressions", IMPRESSIONS)
    write_parquet(tmp_path / "raw", "actions", ACTIONS)
    preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "data", *EVENTS, BOUNDARIES))
    write_parquet(tmp_path / "unlabelled", "impressions", IMPRESSIONS)
    words = ["source=events", "source.events.boundaries=[]", f"source.path={tmp_path / 'unlabelled'}"]
    score(settings_of(tmp_path / "out", *words), model_of(tmp_path / "data"))
    table = pq.ParquetDataset(tmp_path / "out" / "scores").read()
    times = dict(zip(table["impression_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True))
    assert times == {row["impression_id"]: 1000 * row["timestamp"] for row in reversed(IMPRESSIONS)}
    wanted = expected(tmp_path / "data", "train", "validation", "test")
    found = written(tmp_path / "out")
    assert len(wanted) >= 5
    assert_same({key: found[key] for key in wanted}, wanted)
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["quarantined"] == {**audit["quarantined"], "duplicate_impression": 1}
    assert audit["lines"]["train"]["impressions"]["read"] == len(IMPRESSIONS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=DATA", "source.path=RAW"], "source.path and data are both given"),
        ([], "source.path and data are both missing"),
        (["data=DATA", "split=tomorrow"], "split=tomorrow is not one of train, validation, test"),
        (["data=DATA", "impressions_per_batch=0"], "impressions_per_batch=0 is below 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(tmp_path, *words)


def test_a_log_of_another_layout_or_a_dataset_of_other_fields_is_refused(
    dataset: Path, directory: Path, tmp_path: Path
) -> None:
    events = ["source=events", "source.events.boundaries=[]", f"source.path={directory}"]
    with pytest.raises(InputError, match=r"source=events is not the layout of the log .* give source=aliccp"):
        score(settings_of(tmp_path, *events), model_of(dataset))
