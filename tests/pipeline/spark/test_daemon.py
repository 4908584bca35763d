"""A worker whose JVM has gone says nothing."""

import subprocess
import sys

import pytest

_PROGRAM = """
import os, socket, sys
import pyspark.daemon
import pipeline.spark.daemon as ours
os.environ["PYTHON_DAEMON_KILL_WORKER_ON_FLUSH_FAILURE"] = sys.argv[2]
jvm, sock = socket.socketpair()
jvm.close()
try:
    (ours.worker if sys.argv[1] == "ours" else pyspark.daemon.worker)(sock, True)
except BrokenPipeError:
    import traceback; traceback.print_exc()  # as pyspark.daemon.manager does
"""


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_worker_whose_jvm_has_closed_its_socket_prints_nothing(whose: str) -> None:
    result = subprocess.run([sys.executable, "-c", _PROGRAM, whose, "1"], capture_output=True, text=True, check=False)
    assert ("BrokenPipeError" in result.stderr) == (whose != "ours"), result.stderr
    assert whose != "ours" or result.stderr == ""
