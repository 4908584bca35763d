import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

from jobs.entry import compose
from pipeline.errors import InputError
from training.distributed.settings import EMBEDDING_OPTIMIZERS
from training.model.graph import Graph
from training.run.run_folder import load_settings
from training.run.settings import TrainSettings

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def train_settings(*overrides: str) -> TrainSettings:
    return compose("train", TrainSettings, ["data=d", "out=o", *overrides])


def run(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_two_ranks_under_torchrun_train_and_one_evaluates(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=60)
    out = tmp_path / "run"
    overrides = (f"data={tmp_path / 'data'}", f"out={out}", "plan.batch_size=64", "model.towers.hidden=[8]")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run(*torchrun, "-m", "jobs.train", *overrides)
    assert done.returncode == 0, done.stderr
    assert f"\nnext: python -m jobs.evaluate run={out} split=test\n" in done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert load_settings(out).plan.batch_size == 64
    done = run(sys.executable, "-m", "jobs.evaluate", f"run={out}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("CTCVR ")]
    assert row[2] == f"{metrics['ctcvr_auc']:.4f}"
    assert f"\n  open {out / 'report.html'}\n" in done.stdout
    for name in ("metrics.json", "metrics.test.json", "report.html", "predictions/test/part-00000.parquet"):
        assert (out / name).exists(), name


def test_a_mistake_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "jobs.train", f"data={tmp_path / 'nothing'}", f"out={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "does not exist" in done.stderr


def test_a_split_that_is_none_is_refused_where_it_would_have_meant_no_validation() -> None:
    with pytest.raises(InputError, match=r"validation.split=dev is not one of train, validation, test; null"):
        train_settings("validation.split=dev")


@pytest.mark.parametrize("model", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_model_composes_to_a_graph(model: str) -> None:
    settings = train_settings(f"model={model}", *(["ctr_run=CTR"] if model.startswith("unbias") else []))
    graph = Graph(settings.model.graph, ["click", "daction", "conversion"])
    assert settings.model.name == model
    single = {"ctr": "p_ctr", "dnn_ctr": "p_ctr", "dnn_os_ctr": "p_ctr", "ctcvr": "p_ctcvr"}
    assert single.get(model, "p_cvr") in graph.outputs


@pytest.mark.parametrize("optimizer", sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml")))
def test_every_optimizer_composes_to_one_that_a_cpu_has(optimizer: str) -> None:
    assert train_settings(f"optimizer={optimizer}").optimizer.embeddings.name == optimizer
    assert optimizer in EMBEDDING_OPTIMIZERS["cpu"]


def test_an_experiment_holds_only_its_differences() -> None:
    settings = train_settings("model=esm2", "experiment=esm2_paper")
    assert settings.embedding.dims == {"item_id": 128}
    assert (settings.plan.batch_size, settings.optimizer.towers.lr) == (1000, 5e-4)
    assert settings.model.towers.hidden == [512, 256, 128, 32]
    assert settings.embedding.dim == 18


def test_the_wide_network_differs_from_esmm_in_its_hidden_layers_alone() -> None:
    wide, plain = train_settings("model=esmm_wide"), train_settings("model=esmm")
    assert wide.model.towers.hidden == [360, 200, 80]
    assert wide.model.graph == plain.model.graph
    assert plain.model.towers.hidden == [200, 80]


def test_the_defaults_are_those_of_the_dataclasses() -> None:
    settings = train_settings()
    assert settings == TrainSettings(data="d", out="o", model=settings.model)


@pytest.mark.parametrize("job", ["train", "evaluate", "plan"])
def test_no_job_loads_torch_before_its_settings_are_checked(job: str) -> None:
    code = f"import sys, jobs.{job}; sys.exit('torch' in sys.modules)"
    assert run(sys.executable, "-c", code).returncode == 0


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_waiting_threads_sleep_in_every_job_unless_the_user_says_otherwise(given: dict[str, str], found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    code = "import os, sys, jobs.entry; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [found, "False"], done.stderr
