"""jobs.export: a folder that scores without this project, compared with the feed before it is there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

import training
from pipeline.errors import InputError
from pipeline.kernels.hashing import mix
from training.distributed.world import join
from training.evaluation.calibrators import CALIBRATOR_FILE, Calibrator, Isotonic, Platt
from training.export import check, folder
from training.export.folder import export_run
from training.export.samples import unmixed
from training.export.settings import ExportSettings
from training.export.trace import missing_tool
from training.run.trainer import Trainer
from training.serving.network import ServedNetwork


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    write_tiny_dataset(root / "data", num_contexts=120, numeric=True)
    trained = tiny_settings(root / "data", root / "run", epochs=2)
    trained.embedding.init_bound, trained.embedding.poolings = 0.5, {"user_item_brands": "sum"}
    with join(trained.world) as world:
        Trainer(trained, world).fit()
    return root / "run"


@pytest.fixture(scope="module")
def export(run: Path) -> Path:
    """An export by the job, with torch.export's graph."""
    out = run.parent / "exported"
    done = job(run, out)
    assert done.returncode == 0, done.stderr
    first, last, made, following = done.stdout.splitlines()
    assert "largest differences from training.load: feed" in first
    assert last.endswith(f"serve it with: python {out}/server.py")
    assert made.startswith(f"export: {out} · ")
    assert following == f"next: python {out}/server.py"
    return out


def job(run: Path, out: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "jobs.export", f"run={run}", f"out={out}", "formats=[pt2]", "check_impressions=80"]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip


def test_the_folder_is_complete_and_says_what_was_compared(run: Path, export: Path) -> None:
    found = json.loads((export / "check.json").read_text())
    assert found["impressions"] == 80
    assert set(found["largest_difference"]) == {"feed", "pt2"}
    assert all(difference <= 1e-6 for difference in found["largest_difference"].values())
    schema = json.loads((export / "schema.json").read_text())
    assert schema["source"]["checkpoint"] == training.load(run).checkpoint.path.name
    assert schema["outputs"]["p_cvr"] == "conversion | click"
    assert not [path for path in export.parent.iterdir() if path.name.endswith(".tmp")]


def test_the_example_is_answered_by_a_process_that_has_nothing_of_this_project(export: Path) -> None:
    code = """
import json, sys
sys.path[:] = [path for path in sys.path if "site-packages" in path or "python3" in path]
sys.path.insert(0, ".")
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
from scoring import ExportedModel
request = json.load(open("example_request.json"))
answer = ExportedModel(".").predict(request["context"], request["candidates"])
print(json.dumps({name: values.tolist() for name, values in answer.items()}))
assert not {"training", "pipeline", "numba", "torchrec"} & set(sys.modules), sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=export, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads((export / "example_answer.json").read_text())
    found = json.loads(done.stdout)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)


def exports_with(run: Path, tmp_path: Path, **chosen: Any) -> list[str]:
    given = {"formats": ["pt2"], "check_impressions": 60} | chosen
    return list(export_run(ExportSettings(run=str(run), out=str(tmp_path / "out"), **given)))


def test_int8_tables_are_exported_with_the_auc_before_and_after(run: Path, tmp_path: Path) -> None:
    lines = exports_with(run, tmp_path, tables="int8")
    assert "int8 tables, over" in lines[1]
    found = json.loads((tmp_path / "out" / "check.json").read_text())["int8"]
    assert found["fp32"].keys() == found["int8"].keys() >= {"ctr_auc", "ctcvr_auc"}
    assert found["fp32"] != found["int8"]
    assert abs(found["fp32"]["ctr_auc"] - found["int8"]["ctr_auc"]) < 0.02
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    dtypes = {name.rpartition(".")[2]: value.dtype for name, value in program.state_dict.items()}
    assert dtypes["table_item_id"] == torch.int8


CURVES: dict[str, dict[str, Platt | Isotonic]] = {
    "platt": {"p_ctr": Platt(0.7, -0.3), "p_cvr": Platt(1.5, 0.2)},
    "isotonic": {"p_ctr": Isotonic((0.1, 0.4, 0.5), (0.05, 0.05, 0.9)), "p_ctcvr": Isotonic((0.3,), (0.2,))},
}


@pytest.mark.parametrize("kind", CURVES)
def test_an_export_applies_the_calibrator_of_its_checkpoint(run: Path, tmp_path: Path, kind: str) -> None:
    calibrator = Calibrator(kind, {"checkpoint": training.load(run).checkpoint.path.name}, CURVES[kind])
    calibrator.write(run / CALIBRATOR_FILE)
    try:
        exports_with(run, tmp_path, calibrator=True)
    finally:
        (run / CALIBRATOR_FILE).unlink()
    request = json.loads((tmp_path / "out" / "example_request.json").read_text())
    raw = training.load(run).predict(request["context"], request["candidates"])
    found = check.exported_model(tmp_path / "out", "pt2").predict(request["context"], request["candidates"])
    answer = json.loads((tmp_path / "out" / "example_answer.json").read_text())
    for name, values in raw.items():
        expected = CURVES[kind][name].apply(values) if name in CURVES[kind] else values
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
        np.testing.assert_allclose(answer[name], expected, atol=1e-6)
    assert any(np.abs(found[name] - raw[name]).max() > 0.01 for name in CURVES[kind])


def test_a_calibrator_that_is_missing_or_of_another_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"calibrator.json is missing; fit it by jobs.evaluate"):
        exports_with(run, tmp_path, calibrator=True)
    Calibrator("platt", {"checkpoint": "step-00000001"}, CURVES["platt"]).write(run / CALIBRATOR_FILE)
    try:
        with pytest.raises(InputError, match=r"was fitted on step-00000001, and step-\d+ is exported"):
            exports_with(run, tmp_path, calibrator=True)
    finally:
        (run / CALIBRATOR_FILE).unlink()


def drop_weights(network: ServedNetwork, *arguments: Any) -> Any:
    """Plant the fault of a public system: the weights of multi-valued fields are dropped at export."""
    pooled = ServedNetwork._pooled

    def without_weights(self: ServedNetwork, entry: Any, table: str, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        name = f"{entry.name}__weight"
        return pooled(self, entry, table, columns | {name: columns[name] * 0 + 1} if entry.weighted else columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServedNetwork, "_pooled", without_weights)
        return SAVE_GRAPHS(network, *arguments)


SAVE_GRAPHS = folder.save_graphs


def test_a_graph_that_drops_the_weights_is_not_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "save_graphs", drop_weights)
    with pytest.raises(InputError, match=r"The export is not right: training\.load and pt2 differ by"):
        exports_with(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_with_two_ids_swapped_is_not_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(path: Path, name: str, id_N: np.ndarray) -> dict[str, str]:
        return save_lookup(path, name, id_N[::-1].copy() if name == "item_id" else id_N)

    save_lookup = folder.save_lookup
    monkeypatch.setattr(folder, "save_lookup", swapped)
    with pytest.raises(InputError, match="The export is not right"):
        exports_with(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_scorer_that_differs_from_the_feed_is_not_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ServedNetwork._numbers
    monkeypatch.setattr(ServedNetwork, "_numbers", lambda self, *given: original(self, *given) * 1.001)
    with pytest.raises(InputError, match=r"jobs\.evaluate's way and training\.load differ by"):
        exports_with(run, tmp_path)


def test_a_folder_that_is_there_a_run_without_a_checkpoint_and_a_dataset_that_is_gone_are_one_sentence(
    run: Path, export: Path, tmp_path: Path
) -> None:
    again = job(run, export)
    assert again.returncode == 2
    assert again.stderr == f"error: out={export} is there already; choose another folder, or remove it.\n"
    empty = tmp_path / "empty"
    shutil.copytree(run, empty)
    shutil.rmtree(empty / "checkpoints")
    with pytest.raises(InputError, match="has no whole checkpoint yet"):
        exports_with(empty, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        exports_with(run, tmp_path, data=str(tmp_path / "gone"))


@pytest.mark.parametrize(
    "wrong",
    [{"formats": []}, {"formats": ["pt2", "pt2"]}, {"formats": ["tflite"]}, {"tables": "int4"}, {"check_impressions": -1}, {"checkpoint": "last"}],
)  # fmt: skip
def test_a_setting_outside_its_rule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        ExportSettings(run="r", out="o", **wrong)


def test_a_format_whose_tool_is_missing_is_left_out_and_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_tool("aoti") == "no C++ compiler is on the PATH"
    lines = exports_with(run, tmp_path, formats=["pt2", "aoti"], check_impressions=0)
    assert lines[0] == "aoti is left out: no C++ compiler is on the PATH."
    with pytest.raises(InputError, match="no C\\+\\+ compiler is on the PATH; add pt2"):
        list(export_run(ExportSettings(run=str(run), out=str(tmp_path / "other"), formats=["aoti"])))
    assert not (tmp_path / "other").exists()


def test_differences_of_scores_that_are_no_numbers_or_not_there_are_infinite() -> None:
    values = np.array([0.1, 0.2], np.float32)
    assert check.largest_difference({"a": values}, {"a": values}) == (0.0, "a")
    assert check.largest_difference({"a": values}, {"a": np.array([0.1, np.nan])})[0] == np.inf
    assert check.largest_difference({"a": values}, {"b": values}) == (np.inf, "a, b")


@settings(deadline=None)  # the first example compiles
@given(st.integers(0, 2**64 - 1))
def test_the_hash_of_ids_is_undone(word: int) -> None:
    with np.errstate(over="ignore"):
        assert int(mix(np.uint64(unmixed(word)))) == word
