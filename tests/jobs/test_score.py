"""jobs.score gives what jobs.evaluate gives, of the same impressions, from raw lines and from the dataset's rows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_log import RawLog, random_log

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.config.score import ScoreSettings
from pipeline.errors import InputError
from pipeline.passes.scorer import TrainedModel
from pipeline.preprocess import preprocess
from pipeline.score import score, summarize_scores
from training.distributed.world import join
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer
from training.serving.row_scorer import describe_run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from pipeline.storage.scores import ScoreManifest

ROOT = Path(__file__).parents[2]
OUTPUTS = ("p_ctr", "p_cvr", "p_ctcvr")


@pytest.fixture(scope="module")
def raw() -> RawLog:
    return random_log(5, num_contexts=25)


@pytest.fixture(scope="module")
def folder(
    raw: RawLog,
    tmp_path_factory: pytest.TempPathFactory,
    preprocess_settings: Callable[..., PreprocessSettings],
    spark: "SparkSession",
) -> Path:
    """raw, data and run: a log, its dataset, and a model of it that is trained and evaluated on test."""
    folder = tmp_path_factory.mktemp("score")
    raw.write(folder / "raw")
    preprocess(preprocess_settings(folder / "raw", folder / "data", "features=aliccp_numeric"))
    words = [f"data={folder / 'data'}", f"out={folder / 'run'}", "model=esmm", "plan.batch_size=64", "world.device=cpu",
             "embedding.init_bound=0.8", "embedding.poolings.user_shops=mean"]  # fmt: skip
    settings = compose("train", TrainSettings, words)
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    with join(settings.world) as world:
        evaluate_split(folder / "run", settings, "test", None, world)
    return folder


def scored(folder: Path, out: Path, *words: str) -> "ScoreManifest":
    found = describe_run(str(folder / "run"), "newest")
    model = TrainedModel(found.scorer, found.outputs, found.dataset, found.manifest, found.origin)
    return score(compose("score", ScoreSettings, [f"run={folder / 'run'}", f"out={out}", *words]), model)


def rows_of(path: Path) -> pa.Table:
    return (
        pq.ParquetDataset(path, partitioning=None)
        .read()
        .sort_by([("context_id", "ascending"), ("impression_id", "ascending")])
    )


def assert_equal_scores(found: pa.Table, wanted: pa.Table) -> None:
    for name in ("impression_id", "context_id", "group_id"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name].to_numpy(), wanted[name].to_numpy(), rtol=0, atol=1e-6)
    assert len(np.unique(found["p_ctr"].to_numpy())) > found.num_rows // 2  # the model tells impressions apart


def test_raw_lines_with_labels_and_without_and_rows_of_the_dataset_have_the_probabilities_of_the_evaluation(
    folder: Path, raw: RawLog, tmp_path: Path
) -> None:
    wanted = rows_of(folder / "run" / "predictions" / "test")
    labelled = scored(folder, tmp_path / "labelled", f"source.path={folder / 'raw'}", "impressions_per_batch=100")
    assert_equal_scores(rows_of(tmp_path / "labelled" / "scores" / "period=test"), wanted)
    scored(folder, tmp_path / "rows", f"data={folder / 'data'}")
    assert_equal_scores(rows_of(tmp_path / "rows" / "scores"), wanted)
    (tmp_path / "raw").mkdir()
    lines = [line.split(b",", 3) for line in raw.lines["sample_skeleton_test"]]
    unlabelled = [row[0] + b",,," + row[3] for row in lines if len(row) == 4 and {row[1], row[2]} <= {b"0", b"1"}]
    (tmp_path / "raw" / "sample_skeleton_test.csv").write_bytes(b"\n".join(unlabelled))
    (tmp_path / "raw" / "common_features_test.csv").write_bytes(b"\n".join(raw.lines["common_features_test"]))
    scored(folder, tmp_path / "unlabelled", f"source.path={tmp_path / 'raw'}")
    assert_equal_scores(rows_of(tmp_path / "unlabelled" / "scores"), wanted)
    metadata = pq.read_schema(tmp_path / "labelled" / labelled.files[0].path).metadata
    assert metadata[b"entirespace.run"].decode() == str((folder / "run").resolve())
    assert metadata[b"entirespace.checkpoint"].decode() == f"step-{int(metadata[b'entirespace.step']):08d}"
    assert summarize_scores(labelled).startswith("test: ") or "train: " in summarize_scores(labelled)


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_job_that_is_killed_leaves_nothing_visible_and_its_rerun_gives_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    words = ["jobs.score", f"run={folder / 'run'}", f"source.path={folder / 'raw'}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = command(*words, f"out={whole}")
    assert done.returncode == 0, done.stderr
    assert "impressions scored by step-" in done.stdout
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(*words, f"out={killed}")
        wait_for(killed / "_staging", process)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert not list(killed.glob("scores/**/*.parquet"))
        assert not (killed / "scores.json").exists()
    assert command(*words, f"out={killed}").returncode == 0
    assert contents(killed) == contents(whole)
    again = command(*words, f"out={killed}")
    assert "is already there, of this checkpoint and log; nothing to do." in again.stdout


def contents(out: Path) -> dict[str, bytes]:
    """Every file but run.json, which has the times of the job."""
    names = [path for path in out.rglob("*") if path.is_file() and path.name not in ("run.json", "_lock")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in names}


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def wait_for(path: Path, process: Any) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_is_not_there_and_a_log_of_other_words_end_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config.yaml, so no training run is there"):
        describe_run(str(tmp_path), "newest")
    done = command("jobs.score", f"run={tmp_path}", f"out={tmp_path / 'out'}", "data=D", "checkpoint=latest")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: checkpoint=latest")
