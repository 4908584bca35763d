import os
import signal
from pathlib import Path

import pytest

from jobs.entry import compose
from pipeline.errors import InputError
from pipeline.simulate import chunk_pool
from pipeline.simulate.run import SimulateSettings, simulate


def test_the_bytes_of_a_log_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    logs = {}
    for processes in (1, 2, 3):
        out = tmp_path / str(processes)
        words = [f"out={out}", "impressions=90000", "actions=true", "dirt=0.01", f"processes={processes}"]
        simulate(compose("simulate", SimulateSettings, words))
        logs[processes] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(logs[1]) == 11
    assert logs[1] == logs[2] == logs[3]


def test_a_lost_process_of_the_simulation_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_pool, "make_chunk", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    words = [f"out={tmp_path / 'log'}", "impressions=90000", "processes=2"]
    settings = compose("simulate", SimulateSettings, words)
    with pytest.raises(InputError, match="ended; the system does that where memory is short"):
        simulate(settings)
    assert not (tmp_path / "log").exists()
