"""What a job prints: bars and colours on a terminal of any width, plain lines elsewhere, tables, the block at the end."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pseudo_terminal import drawn_lines, last_screen, run_on_terminal

from pipeline.terminal import Bar, close_job, command_of, duration_text, print_next, size_text, text_table, text_width

ROOT = Path(__file__).parents[2]
STAGES = """
import sys, time
sys.path.insert(0, {root!r})
from pipeline.terminal import close_job, stage
with stage("starting Spark (local[2])"):
    with stage("finding the rows of impressions", 3, "files", "3 files") as bar:
        bar.update_to(2)
with stage("pass 1 of 2: counting ids", 3_000_000_000, "B", "3.0 GB, 12 tasks") as bar:
    for done in range(0, 3_100_000_000, 500_000_000):
        bar.update_to(done)
        time.sleep(0.12)
try:
    with stage("pass 2 of 2: writing rows", 10, "tasks", "10 tasks") as bar:
        bar.update_to(4)
        raise ValueError
except ValueError:
    print("error: the disk is full", file=sys.stderr)
close_job("dataset", "out/größe", 61, ["1,000 impressions"], ["a field leaks"], ["out/audit.html"], "python -m jobs.train")
"""


def stages() -> list[str]:
    return [sys.executable, "-c", STAGES.format(root=str(ROOT))]


@pytest.mark.parametrize("columns", [24, 60, 80, 140])
def test_bars_fit_the_line_and_end_as_one_line_a_stage(columns: int) -> None:
    status, written = run_on_terminal(stages(), columns)
    assert status == 0
    bars = [line for line in drawn_lines(written) if "%|" in line or re.search(r"\d%", line)]
    assert max(map(len, bars)) <= columns
    if columns >= 60:
        assert any("1.50G/3.00G" in line for line in bars)  # it moves by bytes
    screen = [re.sub(r"\d+\.\d s", "T s", line) for line in last_screen(written) if line]
    assert screen == [
        "✓ finding the rows of impressions: 3 files, T s",
        "✓ starting Spark (local[2]): T s",
        "✓ pass 1 of 2: counting ids: 3.0 GB, 12 tasks, T s",
        "error: the disk is full",
        "dataset: out/größe · 1 min 1 s",
        "  1,000 impressions",
        "  open out/audit.html",
        "warning: a field leaks",
        "next: python -m jobs.train",
    ]
    assert "\x1b[32m" in written


def test_no_color_and_a_dumb_terminal_have_bars_without_colors() -> None:
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        _, written = run_on_terminal(stages(), 80, environment)
        assert not re.search(r"\x1b\[[0-9;]*m", written)
        assert "%|" in written


def test_a_file_gets_few_plain_lines() -> None:
    done = subprocess.run(stages(), capture_output=True, text=True, check=True)
    assert not re.search(r"[\r\x1b]", done.stdout + done.stderr)
    assert [re.sub(r"\d+\.\d s", "T s", line) for line in done.stderr.splitlines()] == [
        "starting Spark (local[2]) …",
        "finding the rows of impressions …",
        "finding the rows of impressions: 3 files, T s",
        "starting Spark (local[2]): T s",
        "pass 1 of 2: counting ids …",
        "pass 1 of 2: counting ids: 3.0 GB, 12 tasks, T s",
        "pass 2 of 2: writing rows …",
        "error: the disk is full",
        "warning: a field leaks",
    ]
    assert (
        done.stdout
        == "dataset: out/größe · 1 min 1 s\n  1,000 impressions\n  open out/audit.html\nnext: python -m jobs.train\n"
    )


def test_a_long_stage_says_in_a_file_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("pass 1 of 2", 4_000_000_000, "B", every_s=0)
    for done in (1e9, 1e9, 5e8, 3e9, 4e9):
        bar.update_to(done)
    bar.close("4.0 GB")
    assert capsys.readouterr().err.splitlines()[:3] == [
        "pass 1 of 2 …",
        "pass 1 of 2: 25%, 1.0 GB of 4.0 GB",
        "pass 1 of 2: 75%, 3.0 GB of 4.0 GB",
    ]


def test_a_stage_of_another_job_names_no_next_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_next("python -m jobs.train")
    monkeypatch.setenv("ENTIRESPACE_IN_CHAIN", "1")
    print_next("python -m jobs.train")
    assert capsys.readouterr().out == "next: python -m jobs.train\n"


def test_what_is_printed_shows_no_control_character_of_a_path_or_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    close_job("run", "a\x1b[2J", None, [], ["b\nc"], ["d\x07"], command_of("jobs.score", "run=a b\x1b"), stream)
    assert not re.search("[\x00-\x09\x0b-\x1f]", stream.getvalue() + capsys.readouterr().err)
    assert "'run=a b" in stream.getvalue()


def test_a_table_is_aligned_by_what_is_seen() -> None:
    lines = text_table([["name", "a"], ["größe", "10"], ["商品", "1,000"], ["e\u0301", ""]])
    assert lines == ["name       a", "größe     10", "商品   1,000", "e\u0301"]
    assert text_width("商品") == 4


def test_times_and_sizes_read_as_a_person_would_write_them() -> None:
    assert [duration_text(number) for number in (0.04, 59.9, 60, 200, 3599.9, 7500)] == [
        "0.0 s", "59.9 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip
    assert [size_text(number) for number in (812, 37.9e9, 2.5e6)] == ["0.8 kB", "37.9 GB", "2.5 MB"]


def test_a_stage_asks_how_far_it_is_and_survives_an_answer_that_fails() -> None:
    """As the JVM's, when it has ended: the stage itself says so."""
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pipeline.terminal import stage
answers = iter([1, 3])
with stage("write", 4, "tasks", "4 tasks", lambda: next(answers)):
    time.sleep(1.3)
"""
    status, written = run_on_terminal([sys.executable, "-c", script], 80)
    assert status == 0
    assert [count for count in ("1/4", "3/4") if count in written] == ["1/4", "3/4"]
    assert "StopIteration" not in written
    assert re.fullmatch(r"✓ write: 4 tasks, \d\.\d s", last_screen(written)[0])
