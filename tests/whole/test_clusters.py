"""The images, as far as they can be tried without a Docker daemon: their scripts run for real, with stand-ins for Java and tini."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.command_line import settings_of
from pipeline.config.preprocess import PreprocessSettings
from training.run.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "docker").glob("*.sh"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))

STAND_INS = {
    "java": 'printf "%s\\0" "$@" >"$CALLS.argv"',
    "tini": 'shift 2; exec "$@"',
}


def tool(name: str) -> str:
    """A developer's tool, from this environment or from the PATH; it is part of requirements-dev.txt."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is not installed; pip install --no-deps -r requirements-dev.txt"
    return found


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """The environment with the stand-ins first on the PATH."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}


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
    for sources in re.findall(r"^COPY (?:--chmod=\S+ )?((?!--from).+) \S+$", text, re.MULTILINE):
        for source in sources.split():
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
        version = re.search(r"^ARG BASE=python:3\.(\d+)", text, re.MULTILINE)
        bounds = re.search(
            r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
        )
        assert int(bounds[1]) <= int(version[1]) < int(bounds[2])


def test_spark_on_kubernetes_finds_its_driver_and_its_executor_in_the_image(stand_ins, tmp_path):
    entrypoint = [str(ROOT / "docker/spark-entrypoint.sh")]
    home = tmp_path / "spark"
    (home / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "java", home / "bin/spark-submit")
    environment = {
        **stand_ins,
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
        return Path(f"{stand_ins['CALLS']}.argv").read_text().rstrip("\0").split("\0")

    words = words_of("driver", "--properties-file", "/opt/spark/conf/spark.properties", "job.py", "out=a b")
    assert words[:4] == ["--conf", "spark.driver.bindAddress=10.0.0.5", "--deploy-mode", "client"]
    assert words[4:] == ["--properties-file", "/opt/spark/conf/spark.properties", "job.py", "out=a b"]
    words = words_of("executor")
    assert words[:4] == ["-Dspark.driver.port=7078", "-Dname=with a space", "-Xms4g", "-Xmx4g"]
    assert words[4:6] == ["-cp", f"{home}/conf:{home}/jars/*"]
    assert words[6] == "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
    assert words[words.index("--podName") + 1] == "EXECUTOR_POD_NAME"
