"""The arithmetic of benchmarks.before_after and the accounting of CPU seconds below it."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.before_after import Checkout, feed_figures, rows_of, turns
from benchmarks.command_cost import parent_and_cpu_s

ROOT = Path(__file__).parents[2]


def test_the_ratio_is_the_median_of_the_pairs_and_not_that_of_the_medians() -> None:
    pairs = [({"CPU s": 10.0}, {"CPU s": 5.0}), ({"CPU s": 12.0}, {"CPU s": 12.0}), ({"CPU s": 30.0}, {"CPU s": 40.0})]
    # medians 12 and 12, ratios 2, 1 and 0.75
    assert rows_of("train", pairs) == ["| train, CPU s | 12.00 | 12.00 | 1.000 | 2.000 1.000 0.750 |"]
    halved = [({"CPU s": 10.0}, {"CPU s": 5.0}), ({"CPU s": 12.0}, {"CPU s": 8.0}), ({"CPU s": 30.0}, {"CPU s": 15.0})]
    # medians 12 and 8, whose ratio is 1.5; ratios 2, 1.5 and 2
    assert rows_of("train", halved) == ["| train, CPU s | 12.00 | 8.00 | 2.000 | 2.000 1.500 2.000 |"]


def test_who_runs_first_alternates() -> None:
    before, after = Checkout("before", Path("a")), Checkout("after", Path("b"))
    order = [[side.name for side in turns([before, after], pair)] for pair in range(3)]
    assert order == [["before", "after"], ["after", "before"], ["before", "after"]]


def test_the_figures_of_the_feed_are_those_that_it_prints() -> None:
    output = """x86_64, 448,926 impressions in 37 row groups, 23 fields
bare pyarrow                          350.5 ns an impression, 2.85M a core-second
feed                                  410.0 ns an impression, 2.44M a core-second
feed: read                             80.0 ns an impression
ratio 0.80, of the rounds 0.79 to 0.86
"""
    expected = {"ns an impression": 410.0, "bare pyarrow, ns an impression": 350.5, "of bare pyarrow, times": 1.25}
    assert feed_figures(output) == pytest.approx(expected)
    with pytest.raises(SystemExit, match="no figures"):
        feed_figures("error: data=… is no dataset")


def test_the_text_of_proc_is_read_behind_a_name_with_blanks_and_parentheses() -> None:
    own = Path("/proc/self/stat").read_text()
    name = own[own.index("(") : own.rindex(")") + 1]
    for text in (own, own.replace(name, "(a) b (c 1 2)")):
        parent, cpu_s = parent_and_cpu_s(text)
        assert parent == int(Path("/proc/self/status").read_text().split("PPid:")[1].split()[0])
        assert 0 < cpu_s < 3600


@pytest.mark.slow
def test_the_cost_of_a_command_includes_a_child_that_outlives_it(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}])"
    # In a process of its own, for cost_of waits for every child of its process.
    measure = f"""
from pathlib import Path
from benchmarks.command_cost import cost_of
import sys
for words in {[burn, orphan]!r}:
    print(cost_of([sys.executable, "-c", words], Path({str(tmp_path)!r}), {{}}).cpu_s)
"""
    done = subprocess.run([sys.executable, "-c", measure], cwd=ROOT, capture_output=True, text=True, check=True)
    for cpu_s in map(float, done.stdout.split()):
        assert 0.6 < cpu_s < 1.6


@pytest.mark.slow
def test_a_command_that_fails_stops_the_comparison_with_its_output(tmp_path: Path) -> None:
    failing = "import sys; print(41 + 1); sys.exit(3)"
    words = "from pathlib import Path; from benchmarks.command_cost import cost_of; import sys; "
    words += f"cost_of([sys.executable, '-c', {failing!r}], Path({str(tmp_path)!r}), {{}})"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ended with status 3" in done.stderr
    assert "42" in done.stderr
