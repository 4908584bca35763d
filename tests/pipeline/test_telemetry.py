import io
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline import telemetry
from pipeline.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(telemetry.METRICS_FOLDER, str(tmp_path))
    monkeypatch.setenv(telemetry.RUN_ID, "run-7")
    monkeypatch.delenv(telemetry.LOG_FORMAT, raising=False)
    return tmp_path


def samples(folder: Path) -> dict[str, tuple[float, dict[str, str]]]:
    (path,) = folder.iterdir()
    families = list(text_string_to_metric_families(path.read_text()))
    assert all(family.documentation for family in families)
    return {one.name: (one.value, one.labels) for family in families for one in family.samples}


def test_prometheus_reads_what_was_reported_and_the_labels_survive_every_letter(folder: Path) -> None:
    telemetry.begin("train")
    out = 's3://bucket/a "run"\\of\nmine ü'
    telemetry.is_about(out)
    telemetry.enter_stage("train")
    telemetry.set_figures({"impressions_total": 43_000_000, "waiting_share": 0.0125, "loss": float("nan")}, force=True)
    found = samples(folder)
    assert found["entirespace_impressions_total"] == (43_000_000.0, {"job_name": "train", "out": out})
    assert found["entirespace_waiting_share"][0] == 0.0125
    assert found["entirespace_loss"][0] != found["entirespace_loss"][0]
    assert found["entirespace_stage"] == (1.0, {"job_name": "train", "out": out, "stage": "train"})
    assert "entirespace_exit_status" not in found
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o644]


@pytest.mark.parametrize(("ends", "status"), [(None, 0), (SystemExit(75), 75), (SystemExit("why"), 1), (KeyError("a bug"), 1), (InputError("no"), 2)])  # fmt: skip
def test_the_exit_status_is_reported(folder: Path, ends: BaseException | None, status: int) -> None:
    telemetry.begin("train")
    with pytest.raises(type(ends)) if ends else nullcontext(), telemetry.reported_end():
        telemetry.set_figures({"step": 3})
        if ends:
            raise ends
    assert samples(folder)["entirespace_exit_status"][0] == status


def test_a_process_that_reports_nothing_and_one_that_is_not_rank_0_leave_the_file_alone(folder: Path) -> None:
    telemetry.begin("train")  # a launcher of ranks
    with telemetry.reported_end():
        pass
    telemetry.begin("train", rank=1)
    telemetry.set_figures({"step": 1}, force=True)
    telemetry.enter_stage("train")
    assert list(folder.iterdir()) == []


def test_the_file_is_replaced_at_most_every_few_seconds_and_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.begin("train")
    telemetry.set_figures({"step": 1}, force=True)
    telemetry.set_figures({"step": 2})
    assert samples(folder)["entirespace_step"][0] == 1
    monkeypatch.setattr(telemetry, "_EVERY_S", 0.0)
    telemetry.set_figures({"step": 3})
    assert samples(folder)["entirespace_step"][0] == 3


def test_a_folder_that_is_gone_later_costs_one_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.begin("train")
    folder.rmdir()
    for step in range(3):
        telemetry.set_figures({"step": step}, force=True)
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_settings_of_the_environment_that_cannot_be_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(telemetry.METRICS_FOLDER, str(folder / "none"))
    with pytest.raises(InputError, match=r"ENTIRESPACE_METRICS=.*none cannot be written .*textfile.directory"):
        telemetry.begin("train")
    monkeypatch.delenv(telemetry.METRICS_FOLDER)
    monkeypatch.setenv(telemetry.LOG_FORMAT, "xml")
    with pytest.raises(InputError, match="ENTIRESPACE_LOG=xml is not one of text, json"):
        telemetry.begin("train")


def test_lines_are_objects_with_the_run_and_the_stage_and_without_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(telemetry.LOG_FORMAT, "json")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    telemetry.begin("score")
    telemetry.begin("score")  # a job that is called twice in a process wraps its streams once
    telemetry.enter_stage("write")
    print("written: 3 files", end="")
    print(" of train\nno line yet", end="")
    print("warning: planted-secret is shown\n\nerror: it ends ☃", file=sys.stderr)
    (record,) = map(json.loads, out.getvalue().splitlines())
    assert record.pop("time").endswith("Z")
    assert record.pop("host")
    assert record == {
        "level": "info", "job": "score", "run_id": "run-7", "stage": "write", "rank": 0, "stream": "stdout",
        "message": "written: 3 files of train",
    }  # fmt: skip
    warning, error = map(json.loads, err.getvalue().splitlines())
    assert (warning["level"], warning["message"]) == ("warning", "warning: *** is shown")
    assert (error["level"], error["message"], error["stream"]) == ("error", "error: it ends ☃", "stderr")


def test_the_page_names_every_figure_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert set(re.findall(r"\bentirespace_(\w+)", page)) == set(telemetry.FIGURES)
