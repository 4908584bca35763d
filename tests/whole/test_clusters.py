"""The Slurm scripts and the images, as far as they can be tried without a cluster and without a Docker daemon.

The scripts run for real, with stand-ins for Slurm's own commands that write down how they were called.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from jobs.command_line import settings_of
from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from training.run.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
SLURM = sorted((ROOT / "jobs/slurm").glob("*.sbatch"))
SCRIPTS = [*SLURM, *sorted((ROOT / "docker").glob("*.sh"))]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))

#: Every long option in these scripts' #SBATCH lines, as `sbatch --help` of Slurm 22.05 spells them.
SBATCH_OPTIONS = {"job-name", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "mem", "time", "signal", "requeue",
                  "open-mode", "output"}  # fmt: skip
SRUN_OPTIONS = {"nodes", "ntasks", "ntasks-per-node", "kill-on-bad-exit"}

STAND_INS = {
    "scontrol": 'echo "scontrol $*" >>"$CALLS"; [[ $1 == show ]] && printf "%s\\n" ${HOSTS:-node1 node2} || true',
    "scancel": 'echo "scancel $*" >>"$CALLS"; kill -TERM "$(cat "$CALLS.srun")"',
    "srun": 'echo $$ >"$CALLS.srun"; printf "%s\\0" "$@" >"$CALLS.argv"; env >"$CALLS.env"; ${SRUN_DOES:-true}',
    "java": 'printf "%s\\0" "$@" >"$CALLS.argv"',
    "tini": 'shift 2; exec "$@"',
}


def tool(name: str) -> str:
    """A developer's tool, from this environment or from the PATH; it is part of requirements-dev.txt."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is not installed; pip install --no-deps -r requirements-dev.txt"
    return found


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job of two nodes, with the stand-ins first on the PATH."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_CPUS_PER_TASK": "16",
    }


def submit(script: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "jobs/slurm" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def recorded(environment: dict[str, str]) -> tuple[list[str], list[str], dict[str, str]]:
    """How srun was called: its own options, the command behind them, and the environment."""
    calls = environment["CALLS"]
    words = Path(f"{calls}.argv").read_text().rstrip("\0").split("\0")
    own = words[: next(i for i, word in enumerate(words) if not word.startswith("--"))]
    passed = dict(line.split("=", 1) for line in Path(f"{calls}.env").read_text().splitlines() if "=" in line)
    return own, words[len(own) :], passed


def torchrun_of(environment: dict[str, str]):
    """torchrun's arguments as torchrun itself parses them."""
    _, command, _ = recorded(environment)
    assert command[:4] == ["bash", "-c", 'PET_NODE_RANK=$SLURM_NODEID exec "$@"', "torchrun"]
    assert command[5:7] == ["-m", "torch.distributed.run"]
    return get_args_parser().parse_args(command[7:])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_scripts_parse_and_shellcheck_finds_nothing(script):
    for command in (["bash", "-n", str(script)], [tool("shellcheck"), "--shell=bash", str(script)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing_in_the_dockerfiles(dockerfile):
    done = subprocess.run([tool("hadolint"), str(dockerfile)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_copies_what_exists_and_does_not_run_as_root(dockerfile):
    text = dockerfile.read_text()
    for sources in re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
        for source in sources.replace("${REQUIREMENTS}", "requirements.txt").split():
            assert (ROOT / source).exists(), source
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users[-1].isdigit()
    assert users[-1] != "0"


@pytest.mark.parametrize("file", [*SCRIPTS, *DOCKERFILES], ids=lambda path: path.name)
def test_every_module_path_and_setting_that_a_script_or_an_image_names_exists(file):
    text = file.read_text()
    modules = re.findall(r"\b((?:jobs|pipeline|training)(?:\.[a-z_]\w*)+)", text)
    for name in modules:
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name
    for name in re.findall(r"(?<![\w./])((?:jobs|docker|docs|conf|pipeline|training)/[\w/.-]*\w)", text):
        assert (ROOT / name).exists(), name
    job = "train" if file.stem == "train" else "preprocess"
    keys = {setting.key for setting in settings_of({"train": TrainSettings, "preprocess": PreprocessSettings}[job])}
    groups = "|".join(sorted({key.split(".")[0] for key in keys if "." in key}))
    for key in re.findall(rf"(?<![\w./-])((?:{groups})\.\w+(?:\.\w+)*)=", text):
        assert key in keys or key.startswith(("spark.driver.", "spark.kubernetes.")), key  # those are Spark's own
    if file in DOCKERFILES:
        version = re.search(r"^FROM python:3\.(\d+)", text, re.MULTILINE)
        bounds = re.search(
            r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
        )
        assert int(bounds[1]) <= int(version[1]) < int(bounds[2])


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.name)
def test_every_sbatch_option_is_one_that_sbatch_knows(script):
    options = re.findall(r"^#SBATCH (\S+)", script.read_text(), re.MULTILINE)
    assert options
    assert {option.removeprefix("--").split("=")[0] for option in options} <= SBATCH_OPTIONS
    # Slurm stops reading at the first command, so an option below it would be ignored.
    lines = script.read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


def test_training_starts_one_torchrun_a_node_that_meet_on_the_first(slurm):
    assert submit("train.sbatch", slurm, "data=/d", "out=/r").returncode == 0
    own, command, passed = recorded(slurm)
    assert {option.removeprefix("--").split("=")[0] for option in own} <= SRUN_OPTIONS
    assert {"--nodes=2", "--ntasks-per-node=1"} <= set(own)
    assert command[4] == str(ROOT / ".venv/bin/python")
    torchrun = torchrun_of(slurm)
    assert (torchrun.nnodes, torchrun.nproc_per_node, torchrun.max_restarts) == ("2", "1", 0)
    assert (torchrun.rdzv_backend, torchrun.rdzv_endpoint, torchrun.rdzv_id) == ("static", "node1:24711", "4711-0")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in passed, "the ranks of several nodes meet in torchrun's store"
    assert "SIGUSR1" in torchrun.signals_to_handle
    assert torchrun.module
    assert (torchrun.training_script, torchrun.training_script_args) == ("jobs.train", ["data=/d", "out=/r"])
    assert (passed["OMP_NUM_THREADS"], passed["SRUN_CPUS_PER_TASK"]) == ("16", "16")


def test_training_on_one_node_opens_no_port(slurm):
    submit("train.sbatch", {**slurm, "HOSTS": "node1"}, "data=/d", "out=/r")
    torchrun = torchrun_of(slurm)
    assert (torchrun.rdzv_backend, torchrun.rdzv_endpoint, torchrun.rdzv_conf) == ("c10d", "", "store_type=file")
    assert recorded(slurm)[2]["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_gpus_and_variables_decide_on_ranks_and_threads(slurm):
    submit("train.sbatch", {**slurm, "SLURM_GPUS_ON_NODE": "8", "SLURM_RESTART_COUNT": "3"}, "data=/d", "out=/r")
    assert torchrun_of(slurm).nproc_per_node == "8"
    assert torchrun_of(slurm).rdzv_id == "4711-3"
    assert recorded(slurm)[2]["OMP_NUM_THREADS"] == "2"
    chosen = {"RANKS_PER_NODE": "32", "RENDEZVOUS_PORT": "29400", "ENTIRESPACE_PYTHON": "/opt/python"}
    submit("train.sbatch", {**slurm, **chosen}, "data=/d", "out=/r")
    assert torchrun_of(slurm).nproc_per_node == "32"
    assert torchrun_of(slurm).rdzv_endpoint == "node1:29400"
    assert recorded(slurm)[1][4] == "/opt/python"
    assert recorded(slurm)[2]["OMP_NUM_THREADS"] == "1"


def test_arguments_with_spaces_and_brackets_arrive_as_they_were_given(slurm):
    given = ["data=/a b", "embedding.dims={item_id: 32}", "out='x'"]
    submit("train.sbatch", slurm, *given)
    assert torchrun_of(slurm).training_script_args == given


def test_the_arguments_of_both_scripts_compose_into_settings(slurm):
    submit("train.sbatch", slurm, "data=/shared/dataset", "model=esmm", "out=/shared/run")
    settings = compose("train", TrainSettings, torchrun_of(slurm).training_script_args)
    assert (settings.data, settings.out) == ("/shared/dataset", "/shared/run")
    assert submit("preprocess.sbatch", slurm, "source.path=/shared/aliccp", "out=/shared/dataset").returncode == 0
    own, command, passed = recorded(slurm)
    assert {option.removeprefix("--").split("=")[0] for option in own} <= SRUN_OPTIONS
    assert command[:3] == [str(ROOT / ".venv/bin/python"), "-m", "jobs.preprocess"]
    preprocess = compose("preprocess", PreprocessSettings, command[3:])
    assert (preprocess.spark.master, preprocess.source.path) == ("local[16]", "/shared/aliccp")
    assert passed["SPARK_LOCAL_DIRS"] == "/tmp"


def test_a_training_that_fails_by_itself_is_not_queued_again(slurm):
    done = submit("train.sbatch", {**slurm, "SRUN_DOES": "exit 7"}, "data=/d", "out=/r")
    assert done.returncode == 7
    assert "requeue" not in Path(slurm["CALLS"]).read_text()


@pytest.mark.parametrize(("restarts", "queued"), [("0", True), ("20", False)])
def test_the_warning_stops_the_training_and_queues_the_job_again_but_not_for_ever(slurm, restarts, queued):
    environment = {**slurm, "SRUN_DOES": "exec sleep 30", "SLURM_RESTART_COUNT": restarts}
    job = subprocess.Popen(
        ["bash", str(ROOT / "jobs/slurm/train.sbatch"), "data=/d", "out=/r"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not Path(f"{slurm['CALLS']}.env").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=20)
    calls = Path(slurm["CALLS"]).read_text()
    assert "scancel --signal=TERM 4711" in calls
    assert ("scontrol requeue 4711" in calls) == queued
    assert job.returncode == 128 + signal.SIGTERM
    assert ("MAX_REQUEUES" in said) != queued


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.name)
def test_a_script_that_is_run_outside_of_slurm_says_how_to_submit_it(script, slurm):
    del slurm["SLURM_JOB_ID"]
    done = submit(script.name, slurm)
    assert done.returncode != 0
    assert "submit this script with sbatch" in done.stderr


def test_spark_on_kubernetes_finds_its_driver_and_its_executor_in_the_image(slurm, tmp_path):
    entrypoint = [str(ROOT / "docker/spark-entrypoint.sh")]
    home = tmp_path / "spark"
    (home / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "java", home / "bin/spark-submit")
    environment = {
        **slurm,
        "SPARK_HOME": str(home),
        "SPARK_DRIVER_BIND_ADDRESS": "10.0.0.5",
        "SPARK_EXECUTOR_MEMORY": "4g",
        "SPARK_JAVA_OPT_0": "-Dspark.driver.port=7078",
        "SPARK_JAVA_OPT_1": "-Dname=with a space",
        **{f"SPARK_{name}": name for name in ("DRIVER_URL", "EXECUTOR_ID", "EXECUTOR_CORES", "APPLICATION_ID",
           "EXECUTOR_POD_IP", "RESOURCE_PROFILE_ID", "EXECUTOR_POD_NAME")},
    }  # fmt: skip

    def words_of(*arguments: str) -> list[str]:
        subprocess.run([*entrypoint, *arguments], env=environment, check=True, timeout=20)
        return Path(f"{slurm['CALLS']}.argv").read_text().rstrip("\0").split("\0")

    words = words_of("driver", "--properties-file", "/opt/spark/conf/spark.properties", "job.py", "out=a b")
    assert words[:4] == ["--conf", "spark.driver.bindAddress=10.0.0.5", "--deploy-mode", "client"]
    assert words[4:] == ["--properties-file", "/opt/spark/conf/spark.properties", "job.py", "out=a b"]
    words = words_of("executor")
    assert words[:4] == ["-Dspark.driver.port=7078", "-Dname=with a space", "-Xms4g", "-Xmx4g"]
    assert words[4:6] == ["-cp", f"{home}/conf:{home}/jars/*"]
    assert words[6] == "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
    assert words[words.index("--podName") + 1] == "EXECUTOR_POD_NAME"
