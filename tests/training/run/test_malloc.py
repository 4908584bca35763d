import subprocess
import sys

import pytest

CHURN = """
import resource
import sys
import numpy as np
from training.run.malloc import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    arrays = [np.ones(2_000_000, np.float32) for _ in range(6)]
for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_the_arrays_of_a_step_are_those_of_the_step_before() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", CHURN, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "as it comes")
    }
    assert faults["kept"] < 100 < faults["as it comes"], faults
