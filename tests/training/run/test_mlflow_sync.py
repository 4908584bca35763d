"""A run on a stand-in for an MLflow server; docs/training.md says what was tried with a real one."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow_stub import Tracked, mlflow_stub
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

from jobs.track import TrackSettings, run
from pipeline.errors import InputError
from training.distributed.world import join
from training.run.mlflow_server import ServerError
from training.run.mlflow_sync import BackgroundSync, params_of, sync_run
from training.run.run_folder import write_config
from training.run.settings import LogSettings
from training.run.trainer import Trainer


@pytest.fixture
def server() -> Iterator[Tracked]:
    with mlflow_stub() as tracked:
        yield tracked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with its settings, three entries, an evaluation of its own and one of another checkpoint."""
    run = tmp_path / "run"
    (run / "evaluations" / "test.step-00000020").mkdir(parents=True)
    write_config(run, tiny_settings(tmp_path / "data", run))
    entries(run, *({"epoch": 0, "step": step, "loss": 1 / step, "gradient_norm_towers": None} for step in (20, 40)))
    entries(run, {"epoch": 0, "step": 40, "validation_ctr_auc": 0.6, "best_metric": "ctr_auc", "best_step": 40})
    (run / "metrics.test.json").write_text(json.dumps({"split": "test", "ctr_auc": 0.7, "cvr_auc": None}))
    (run / "metrics.json").write_text((run / "metrics.test.json").read_text())
    (run / "report.html").write_text("<p>report")
    figures = {"split": "test", "ctr_auc": 0.65, "provenance": {"step": 20}}
    (run / "evaluations" / "test.step-00000020" / "metrics.json").write_text(json.dumps(figures))
    return run


def entries(run: Path, *found: dict[str, object]) -> None:
    with (run / "log.jsonl").open("a") as stream:
        stream.writelines(json.dumps(entry) + "\n" for entry in found)


def test_settings_points_figures_and_reports_are_uploaded_once(folder: Path, server: Tracked) -> None:
    first = sync_run(folder, server.uri, "ads")
    assert server.experiments == {"ads": "1"}
    assert [(entry["run_name"], entry["experiment_id"]) for entry in server.runs] == [("run", "1")]
    assert server.params["plan.batch_size"] == "64"
    assert server.params["model.towers.hidden"] == "[16, 8]"
    assert set(server.points) == {
        ("epoch", 0.0, 20), ("loss", 0.05, 20), ("epoch", 0.0, 40), ("loss", 0.025, 40),
        ("validation_ctr_auc", 0.6, 40), ("best_step", 40.0, 40), ("test/ctr_auc", 0.7, 0),
        ("test.step-00000020/ctr_auc", 0.65, 20),
    }  # fmt: skip
    names = {"metrics.json", "metrics.test.json", "report.html", "evaluations/test.step-00000020/metrics.json"}
    assert set(server.artifacts) == {f"1/r1/artifacts/{name}" for name in names}
    assert server.artifacts["1/r1/artifacts/report.html"] == b"<p>report"
    num_points = len(server.points)
    assert sync_run(folder, server.uri, "ads") == first
    assert (len(server.runs), len(server.points)) == (1, num_points)


def test_only_what_is_new_follows_and_steps_that_a_resumed_run_takes_again_do_not(
    folder: Path, server: Tracked
) -> None:
    sync_run(folder, server.uri, "ads")
    server.points.clear()
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text(lines[0])  # resumed at step 20
    entries(folder, {"epoch": 0, "step": 40, "loss": 0.025}, {"epoch": 0, "step": 60, "loss": 0.01})
    (folder / "log.jsonl").open("a").write('{"epoch": 0, "st')  # being written
    (folder / "report.html").write_text("<p>another report")
    sync_run(folder, server.uri, "ads")
    assert server.points == [("epoch", 0.0, 60), ("loss", 0.01, 60)]
    assert server.artifacts["1/r1/artifacts/report.html"] == b"<p>another report"


def test_an_export_and_artifacts_on_a_disk_of_the_server(folder: Path, server: Tracked, tmp_path: Path) -> None:
    (tmp_path / "export" / "vocabulary").mkdir(parents=True)
    (tmp_path / "export" / "vocabulary" / "item_id.parquet").write_bytes(b"ids")
    server.artifact_uri = (tmp_path / "artifacts").as_uri()
    run(TrackSettings(run=str(folder), uri=server.uri, export=str(tmp_path / "export")))
    assert (tmp_path / "artifacts" / "export" / "vocabulary" / "item_id.parquet").read_bytes() == b"ids"
    assert (tmp_path / "artifacts" / "report.html").read_text() == "<p>report"
    with pytest.raises(InputError, match=r"export=.*nowhere is not a folder"):
        run(TrackSettings(run=str(folder), uri=server.uri, export=str(tmp_path / "nowhere")))


def test_a_server_that_is_away_costs_one_warning_and_gets_everything_later(
    folder: Path, server: Tracked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run.mlflow_sync._UPLOAD_EVERY_S", 0.02)
    for uri, why in ((server.uri, "status 500: out of order"), ("http://127.0.0.1:9", "refused")):
        server.refuses = uri == server.uri
        started = time.monotonic()
        following = BackgroundSync(folder, uri, "ads")
        time.sleep(0.3)
        following.close(is_finished=True)
        assert time.monotonic() - started < 30
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        assert len(lines) == 1
        assert lines[0].startswith(f"warning: log.mlflow={uri} lacks entries of this run (")
        assert why in lines[0]
        assert f"python -m jobs.track run={folder} uri={uri}" in lines[0]
    with pytest.raises(InputError, match=r"uri=http://127.0.0.1:9 cannot be used \(.*refused"):
        run(TrackSettings(run=str(folder), uri="http://127.0.0.1:9"))
    server.refuses = False
    sync_run(folder, server.uri, "ads", status="FINISHED")
    assert len(server.points) == 8
    assert server.statuses == ["FINISHED"]


def test_credentials_come_from_the_environment_and_secrets_do_not_leave(
    folder: Path, server: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-word")
    sync_run(folder, server.uri, "ads")
    assert {headers["Authorization"] for headers in server.headers} == {"Basic YWRhOnMzY3JldC13b3Jk"}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    (folder / "mlflow.json").unlink()
    server.headers.clear()
    sync_run(folder, server.uri, "ads")
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer t0ken"}
    assert "s3cret-word" not in (folder / "mlflow.json").read_text()
    shown = params_of({"store": {"access_key": "abcdefgh", "region": "eu"}, "uri": "s3://user:abcdefgh@bucket"})
    assert "abcdefgh" not in json.dumps(shown)
    assert shown["store.region"] == "eu"


def test_training_is_followed_and_a_resumed_run_is_the_same_run_there(tmp_path: Path, server: Tracked) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=60)
    settings = tiny_settings(tmp_path / "data", tmp_path / "run")
    settings.log = LogSettings(every_steps=1, mlflow=server.uri, mlflow_experiment="tiny")
    for epochs in (1, 2):
        with join(settings.world) as world:
            assert Trainer(replace(settings, epochs=epochs), world).fit() == 0
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    wanted = {("loss", entry["loss"], entry["step"]) for entry in logged if "loss" in entry}
    found = [point for point in server.points if point[0] == "loss"]
    assert len(found) == len(wanted) > 2
    assert set(found) == wanted
    assert len(server.runs) == 1
    assert server.statuses[-1] == "FINISHED"


@pytest.mark.parametrize("uri", ["127.0.0.1:5000", "file:///tmp/mlruns", "http://"])
def test_an_address_that_is_no_servers_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"is no address of an MLflow server; give one such as http://127.0.0.1:5000"):
        LogSettings(mlflow=uri)
    with pytest.raises(InputError, match=r"uri=.* is no address of an MLflow server"):
        TrackSettings(run="R", uri=uri)


def test_a_folder_without_a_run_is_one_sentence_and_no_run_on_the_server(tmp_path: Path, server: Tracked) -> None:
    with pytest.raises(InputError, match=r"has no config.yaml, so no training run is there"):
        sync_run(tmp_path, server.uri, "ads")
    assert server.runs == []


def test_a_server_without_an_answer_is_an_error_with_its_reason(folder: Path) -> None:
    with pytest.raises(ServerError, match="refused"):
        sync_run(folder, "http://127.0.0.1:9", "ads")
