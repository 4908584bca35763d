import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import scratch
from pipeline.errors import InputError
from pipeline.scratch import scratch_folder

_PROCESS = """
import os, signal, sys
from pipeline.undo import end_on_signals
from pipeline.scratch import scratch_folder
end_on_signals()
os.umask(0)
(scratch_folder() / "shuffled rows").write_text("secret")
print(scratch_folder(), flush=True)
if os.fork() == 0:
    sys.exit()  # a forked process removes nothing
os.wait()
assert scratch_folder().is_dir()
if sys.argv[1] != "end":
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
    signal.pause()
"""


def run_process(tmp_path: Path, how: str) -> Path:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", _PROCESS, how]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return Path(ended.stdout.splitlines()[0])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("how", ["end", "SIGTERM", "SIGINT"])
def test_the_folder_goes_with_its_process(tmp_path: Path, how: str) -> None:
    assert not run_process(tmp_path, how).exists()


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_in_use_stays(temporary: Path) -> None:
    mine = scratch_folder()
    left = run_process(temporary, "SIGKILL")
    assert mine.is_dir()
    assert left.is_dir()
    assert stat.S_IMODE(left.stat().st_mode) == stat.S_IMODE(left.parent.stat().st_mode) == 0o700
    run_process(temporary, "end")
    assert not left.exists()
    assert scratch_folder() == mine


@pytest.mark.parametrize("planted", ["folder", "link"])
def test_a_folder_that_another_user_could_fill_is_refused(temporary: Path, planted: str) -> None:
    place = temporary / f"entirespace-scratch-{os.geteuid()}"
    if planted == "folder":
        place.mkdir()
        place.chmod(0o777)
    else:
        (temporary / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(temporary / "elsewhere")
    with pytest.raises(InputError, match="not a folder that you alone may use; remove it, or set TMPDIR"):
        scratch_folder()
