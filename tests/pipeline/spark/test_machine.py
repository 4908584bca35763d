"""What a local Spark needs of the machine is checked before Java starts."""

import errno
import os
import resource
import socket
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.spark import machine
from pipeline.spark.machine import check_heap, check_machine, check_master, check_scratch, refuse_connect


def test_a_missing_scratch_folder_is_made_and_one_that_cannot_be_is_named_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path}/a b,{tmp_path}/é")
    check_scratch({})
    assert (tmp_path / "a b").is_dir()
    assert list((tmp_path / "é").iterdir()) == []
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path}/file/below")
    with pytest.raises(
        InputError, match=r"SPARK_LOCAL_DIRS=.*/file/below, Spark's scratch space, cannot be written \(Not a"
    ):
        check_scratch({})
    monkeypatch.delenv("SPARK_LOCAL_DIRS")
    with pytest.raises(InputError, match=r"spark.local.dir=.*/file/x, .* or set spark.local.dir to another folder"):
        check_scratch({"spark.local.dir": f"{tmp_path}/file/x"})


def test_a_tmpdir_that_python_would_pass_over_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/missing")
    with pytest.raises(
        InputError, match=r"TMPDIR=.*/missing cannot be written \(No such file or directory\); set TMPDIR to"
    ):
        check_scratch({})
    monkeypatch.delenv("TMPDIR")
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(InputError, match=r"TMPDIR cannot be written .*; set it to a folder"):
        check_scratch({})


def test_a_full_scratch_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(machine, "probe_room", full)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(
        InputError, match=r"TMPDIR=.* cannot be written \(No space left on device\); make room there, or set"
    ):
        check_machine({})


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ("10m", "below the 450m that Spark needs"),
        ("100", "below the 450m"),
        ("2x", "is not a size"),
        ("-1g", "is not a size"),
        ("1.5g", "is not a size; give a whole number and a unit, such as 2g"),
    ],
)
def test_a_heap_that_java_or_spark_would_refuse_in_a_trace_is_refused_in_a_sentence(memory: str, says: str) -> None:
    with pytest.raises(InputError, match=f"spark.driver.memory={memory} {says}|spark.driver.memory={memory} is {says}"):
        check_heap(memory)
    for right in ("512m", "2g", "2gb", "471859200b", "600", ""):
        check_heap(right)


@pytest.mark.parametrize(
    "master", ["local[x]", "local[0]", "local[2", "lokal", "spark://host", "mesos://host:5050", ""]
)
def test_a_master_of_no_known_form_is_refused(master: str) -> None:
    with pytest.raises(InputError, match=r"spark\.master=.* is no master; give local\[2\]"):
        check_master(master)


def test_yarn_needs_the_settings_of_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="needs HADOOP_CONF_DIR"):
        check_master("yarn")
    monkeypatch.setenv("YARN_CONF_DIR", "/etc/hadoop")
    for right in (
        "yarn",
        "local",
        "local[*]",
        "local[2,4]",
        "local-cluster[2,1,1024]",
        "spark://a:7077,b:7077",
        "k8s://https://h:1",
    ):
        check_master(right)


def test_a_machine_without_ipv4_loopback_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(
        InputError, match=r"talk over 127\.0\.0\.1, which this machine does not have .*ip link set lo up"
    ):
        check_machine({})


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes_and_too_low_a_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits, chosen = {"now": (64, 1024)}, []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: chosen.append(pair))
    check_machine({})
    assert chosen == [(1024, 1024)]
    limits["now"] = (64, resource.RLIM_INFINITY)
    check_machine({})
    assert chosen[1:] == [(4096, resource.RLIM_INFINITY)]
    limits["now"] = (64, 64)
    with pytest.raises(InputError, match=r"The limit of open files is 64, .* \(ulimit -n 4096\)"):
        check_machine({})


def test_the_settings_of_this_machine_pass() -> None:
    check_machine({"spark.driver.memory": "2g", "spark.local.dir": os.environ.get("TMPDIR", "/tmp")})


@pytest.mark.parametrize(
    ("master", "conf", "environment", "said"),
    [
        ("sc://host:15002", {}, {}, "spark.master=sc://host:15002"),
        ("local[2]", {"spark.remote": "sc://host"}, {}, "spark.conf has spark.remote=sc://host"),
        ("local[2]", {"spark.api.mode": "connect"}, {}, "spark.conf has spark.api.mode=connect"),
        ("local[2]", {}, {"SPARK_REMOTE": "sc://host"}, "the environment has SPARK_REMOTE"),
        ("local[2]", {}, {"SPARK_CONNECT_MODE": "1"}, "the environment has SPARK_CONNECT_MODE=1"),
    ],
)
def test_a_spark_connect_session_is_refused(
    master: str, conf: dict[str, str], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=rf"{said}: that is Spark Connect, which has no SparkContext"):
        refuse_connect(master, conf, environment)
    refuse_connect("local[2]", {"spark.api.mode": "classic"}, {"SPARK_CONNECT_MODE": "0"})
