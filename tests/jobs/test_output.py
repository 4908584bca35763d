"""A full standard output is one sentence, and a full standard error is nothing."""

import subprocess
import sys

_JOB = "from jobs.output import check_output; check_output(); import sys; print('text', file=sys.{}, flush=True); print('end')"


def test_a_full_stdout_ends_a_job_in_one_sentence() -> None:
    command = f"{sys.executable} -m jobs.inspect --help > /dev/full"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "error: standard output cannot be written (No space left on device); send it elsewhere. The files that the job has "
        "written are not affected.\n"
    )


def test_a_full_stderr_stops_nothing() -> None:
    command = f'{sys.executable} -c "{_JOB.format("stderr")}" 2> /dev/full'
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "end\n")


def test_a_reader_that_has_gone_and_a_closed_output_stop_nothing() -> None:
    for redirection in ("| true", ">&-", "2>&-"):
        command = f"set -o pipefail; {sys.executable} -m jobs.inspect --help {redirection}"
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, ""), redirection
