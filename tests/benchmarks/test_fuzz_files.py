"""The fuzzer of files: sixty mutations of its own kinds come to a verdict, and planted faults of each sort are reported."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.fuzz_files import damage, judging
from benchmarks.fuzz_files.inputs import write_inputs
from benchmarks.fuzz_files.kinds import KINDS
from benchmarks.fuzz_files.reading import Kind, Reading
from benchmarks.fuzz_files.worker import FILES, PRISTINE, Worker
from pipeline.errors import InputError


def believed(folder: Path) -> Reading:
    """Read a count with every fault that a reader can have."""
    path = folder / "planted" / "count.json"
    if not path.exists():
        raise InputError(f"{path} is missing\nand this is a second line.")
    if not path.is_file():
        os.kill(os.getpid(), signal.SIGKILL)
    content = json.loads(path.read_text())
    while content["count"] == -3:
        time.sleep(1)
    return str(content["count"]), []


PLANTED = Kind("planted", damage.JSON, "planted/*.json", (believed,))


def test_wrong_figures_a_traceback_two_lines_a_hang_and_a_crash_are_reported(tmp_path: Path) -> None:
    for name in (FILES, PRISTINE):
        (tmp_path / name / "planted").mkdir(parents=True)
        (tmp_path / name / "planted" / "count.json").write_text('{"count": 3}')
    seen: dict[str, int] = {}
    with Worker(tmp_path, [PLANTED], deadline_s=1) as worker:
        for seed in range(200):
            seen.setdefault(worker.judge(seed)[2].outcome, seed)
            if set(judging.WRONG) <= set(seen):
                break
        assert set(judging.WRONG) <= set(seen), seen
        for outcome, seed in seen.items():  # `only=SEED` repeats it
            assert worker.judge(seed)[2].outcome == outcome


def test_sixty_mutations_come_to_a_verdict(tmp_path: Path, spark: object) -> None:
    write_inputs(tmp_path / FILES)
    found: Counter[str] = Counter()
    ended = {}  # for the message: which seeds crashed or hung, on what
    with Worker(tmp_path, KINDS, deadline_s=20) as worker:
        worker.train()
        for seed in range(60):
            file, done, verdict = worker.judge(seed)
            assert file, done
            found[verdict.outcome] += 1
            if verdict.outcome in (judging.CRASH, judging.HANG):
                ended[seed] = (file, done, verdict)
    assert found.total() == 60
    assert not ended
    assert found[judging.REFUSED] > 20
    assert found[judging.OTHER] > 0


@pytest.mark.parametrize("sentence", ["a.json is bad\nand more", "\x1b[31mred is no colour of a sentence", "short"])
def test_a_sentence_of_two_lines_control_characters_or_one_word_is_no_refusal(sentence: str) -> None:
    assert judging.of_sentences("reader", [sentence]).outcome == judging.SENTENCE
