"""The commands of the manifests of a training on two nodes, run as two processes here with what Kubernetes would tell them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_cluster import ROOT, free_ports
from tiny_dataset import write_tiny_dataset

from jobs.entry import compose
from training.checkpoint.files import checkpoint_paths
from training.submission.manifests import files_of_stage
from training.submission.plan import plan_jobs
from training.submission.settings import SubmitSettings

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]
ARGUMENTS = (
    "plan.batch_size=32 model.towers.hidden=[8] checkpoint.every_steps=5 validation.split=null world.timeout_s=60"
)


def container_of(data: Path, out: Path, train_as: str, epochs: int) -> tuple[str, dict[str, Any]]:
    """The name of the training and its container, from its manifest."""
    words = [
        "cluster=kubernetes", f"data={data}", f"out={out}", "sizes.train.nodes=2", f"kubernetes.train_as={train_as}",
        f"train_args={ARGUMENTS} epochs={epochs}",
    ]  # fmt: skip
    settings = compose("submit", SubmitSettings, words)
    (text,) = files_of_stage(plan_jobs(settings)[0], "train", settings).values()
    documents = {document["kind"]: document for document in yaml.safe_load_all(text)}
    if train_as == "trainjob":
        runtime = documents["TrainingRuntime"]
        spec = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
        return runtime["metadata"]["name"], spec["template"]["spec"]["containers"][0]
    return documents["Job"]["metadata"]["name"], documents["Job"]["spec"]["template"]["spec"]["containers"][0]


def start_pods(name: str, container: dict[str, Any], folder: Path) -> list["subprocess.Popen[bytes]"]:
    """Start both pods, as the Job's controller or Kubeflow's Trainer would."""
    (port,) = free_ports(1)
    arguments = [word.replace(f"{name}-0.{name}:29400", f"127.0.0.1:{port}") for word in container["args"]]
    pods = []
    for node in (0, 1):
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "PET_NODE_RANK": str(node)}
        environment |= {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        environment |= {"HOME": str(folder), "OMP_NUM_THREADS": "1"}
        if f"127.0.0.1:{port}" not in " ".join(arguments):  # the Trainer says it by variables
            environment |= {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1"}
            environment |= {"PET_MASTER_PORT": str(port)}
        with (folder / f"pod-{node}.log").open("wb") as log:
            pods.append(subprocess.Popen([sys.executable, *arguments[1:]], cwd=ROOT, env=environment, stdout=log, stderr=log))  # fmt: skip
    return pods


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pods") / "data"
    write_tiny_dataset(path, num_contexts=100)
    return path


@pytest.mark.parametrize("train_as", ["job", "trainjob"])
def test_two_pods_meet_and_train(data: Path, tmp_path: Path, train_as: str) -> None:
    name, container = container_of(data, tmp_path / "out", train_as, epochs=1)
    pods = start_pods(name, container, tmp_path)
    statuses = [pod.wait(200) for pod in pods]
    assert statuses == [0, 0], "".join(path.read_text() for path in tmp_path.glob("*.log"))
    ranks = sorted(path.name for path in checkpoint_paths(tmp_path / "out" / "run")[0].glob("rank-*"))
    assert ranks == ["rank-00000.safetensors", "rank-00001.safetensors"]


def test_a_pod_that_loses_the_other_ends_with_75_and_a_mistake_ends_both_with_2(data: Path, tmp_path: Path) -> None:
    name, container = container_of(data, tmp_path / "out", "job", epochs=100_000)
    pods = start_pods(name, container, tmp_path)
    deadline_s = time.monotonic() + 150
    while not checkpoint_paths(tmp_path / "out" / "run"):
        assert time.monotonic() < deadline_s, "".join(path.read_text() for path in tmp_path.glob("*.log"))
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(pods[1].pid)], capture_output=True, text=True, check=True).stdout
    for pid in [pods[1].pid, *map(int, children.split())]:
        os.kill(pid, signal.SIGKILL)
    assert pods[0].wait(120) == 75
    assert pods[1].wait(10) == -signal.SIGKILL

    name, container = container_of(tmp_path / "nothing", tmp_path / "other", "job", epochs=1)
    assert [pod.wait(120) for pod in start_pods(name, container, tmp_path)] == [2, 2]
    assert "error: " in (tmp_path / "pod-0.log").read_text().splitlines()[-1]
