"""Compiled kernels are machine code: they are kept where nobody else can write."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.kernels import cache
from pipeline.kernels.cache import VARIABLE, _is_at, _lock_shared, _locks, _remove_unused, kernels_xxh3, own_directory


def test_the_directory_is_made_for_its_owner_alone_and_named_for_numba(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    made = own_directory(environment)
    assert made.parent == tmp_path / "entirespace" / "numba"
    assert (made.stat().st_mode & 0o777, made.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    assert environment[VARIABLE] == str(made)
    assert own_directory(environment) == made, "a child process finds it as its parent left it"


def test_a_directory_that_is_already_named_wins(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), VARIABLE: str(tmp_path / "mine")}
    assert own_directory(environment).parent == tmp_path / "mine"
    assert not (tmp_path / "cache").exists()


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(InputError, match="may be written by other users"):
        own_directory({VARIABLE: str(tmp_path)})


def test_another_state_of_any_kernel_has_a_directory_of_its_own_for_numba_sees_no_change_in_what_is_inlined(
    tmp_path: Path,
) -> None:
    for package in ("pipeline", "training"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "kernel.py").write_text("@nb.njit\ndef kernel(): ...")
    (tmp_path / "pipeline" / "plain.py").write_text("a = 1")
    states = [kernels_xxh3(tmp_path)]
    (tmp_path / "pipeline" / "plain.py").write_text("a = 2")
    assert kernels_xxh3(tmp_path) == states[0]
    for package in ("pipeline", "training"):
        (tmp_path / package / "kernel.py").write_text(f"@nb.njit\ndef kernel(): {package}")
        states.append(kernels_xxh3(tmp_path))
    assert len(set(states)) == 3


def test_a_new_state_removes_those_that_nobody_has_used_for_a_month_but_none_that_a_process_holds(
    tmp_path: Path,
) -> None:
    held = own_directory({VARIABLE: str(tmp_path)})
    names = ["0" * 16, "1" * 16, "notes"]
    for name in names:
        (tmp_path / name / "kernels").mkdir(parents=True)
        (tmp_path / name / "kernels/parse.nbi").touch()
    holder = "import sys; from pathlib import Path; from pipeline.kernels.cache import _lock_shared; _lock_shared(Path(sys.argv[1])); print(flush=True); input()"
    command = [sys.executable, "-c", holder, str(tmp_path / names[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()
        for path in (held, *(tmp_path / name for name in names)):
            os.utime(path, (0, time.time() - 31 * 24 * 3600))
        assert {path.name for path in tmp_path.iterdir()} == {held.name, *names}
        _remove_unused(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {held.name, *names[1:]}
        process.stdin.write(b"\n")
    _remove_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {held.name, "notes"}
    (tmp_path / names[0]).mkdir()
    _remove_unused(tmp_path)
    assert (tmp_path / names[0]).exists(), "it is young"


def test_a_directory_that_is_removed_while_a_process_waits_for_its_lock_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    waiting = threading.Thread(target=_lock_shared, args=(path,))
    waiting.start()
    shutil.rmtree(path)
    os.close(descriptor)
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert path.is_dir()
    assert _is_at(path, _locks[path])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(InputError, match="belongs to user id 12345"):
        own_directory({VARIABLE: str(tmp_path)})


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        own_directory({VARIABLE: str(tmp_path / "file")})


def test_a_job_says_in_one_sentence_that_its_cache_is_unsafe(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    environment = os.environ | {VARIABLE: str(tmp_path / "shared")}
    command = [sys.executable, "-m", "jobs.preprocess", "source.path=raw", "out=out"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {VARIABLE}={tmp_path}/shared may be written by other users")
    assert result.stderr.count("\n") == 1


def test_a_read_only_cache_is_refused_at_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(_folder: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache, "probe_room", read_only)
    with pytest.raises(
        InputError, match=r"NUMBA_CACHE_DIR=.*, where compiled kernels are kept, cannot be written \(Read-only"
    ):
        own_directory({VARIABLE: str(tmp_path)})


def test_without_a_home_the_variable_that_names_a_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match=r"has no home directory; set XDG_CACHE_HOME"):
        own_directory({})


# Compiles one small kernel, with a limit on the size of files: the system's answer is an OSError, as on a full disk.
_COMPILE = """
import resource, sys
from pipeline.kernels.jit import nb
import numpy as np
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
from pipeline.kernels.hashing import splits_of
try:
    print(splits_of(np.arange(3), False, 0.5, 1))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_full_cache_is_named_by_whoever_compiles_and_a_damaged_one_is_compiled_again(tmp_path: Path) -> None:
    environment = os.environ | {VARIABLE: str(tmp_path)}

    def compile_one(disk: str) -> str:
        command = [sys.executable, "-c", _COMPILE, disk]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    full = compile_one("full")
    assert full.startswith(f"InputError {VARIABLE}={tmp_path}/"), full
    assert full.endswith(
        f"cannot be written (File too large); raise the limit of a file's size (ulimit -f), or set {VARIABLE} to a directory of your own.\n"
    )
    right = compile_one("free")
    indices = list(tmp_path.rglob("*.nbi"))
    assert indices
    for damage in (b"", b"\x80\x05damaged", b"cos\nsystem"):
        for index in indices:
            index.write_bytes(damage)
        assert compile_one("free") == right
