"""The command `entirespace`, and `python -m jobs`: `entirespace JOB …` is `python -m jobs.JOB …`."""

import difflib
import runpy
import sys
from collections.abc import Sequence

from jobs.listing import JOBS
from jobs.output import EXIT_INPUT, check_output
from pipeline.errors import InputError, printable
from pipeline.release import release
from pipeline.terminal import styled

_COMMAND = "entirespace"


def run_entirespace() -> None:
    """Start the job that the first word names, or print what was asked of the command itself."""
    words = sys.argv[1:]
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    names = [job.name for job in JOBS]
    if words and words[0] in names:
        sys.argv = [f"jobs.{words[0]}", *words[1:]]
        runpy.run_module(f"jobs.{words[0]}", run_name="__main__", alter_sys=True)
        return
    try:
        check_output()
        print(answer_of(words), flush=True)
    except InputError as error:
        print(f"{styled('error:', 'red', sys.stderr)} {printable(str(error))}", file=sys.stderr, flush=True)
        sys.exit(EXIT_INPUT)


def answer_of(words: Sequence[str]) -> str:
    """Return what `entirespace WORDS` prints where no job is started. Raises InputError for an unknown job."""
    match list(words):
        case [] | ["--help" | "-h"]:
            return overview()
        case ["--version"]:
            return f"{_COMMAND} {release()}"
        case ["completion", shell]:
            from jobs.completion import completion_script  # it reads every job's settings

            return completion_script(shell)
        case ["completion", *_]:
            raise InputError(f"completion takes one shell: {_COMMAND} completion bash, zsh or fish.")
    near = difflib.get_close_matches(words[0], [job.name for job in JOBS], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"{_COMMAND} --help lists the jobs."
    raise InputError(f"{words[0]} is not a job; {hint}")


def overview() -> str:
    """List the jobs in the order of use."""
    width = max(len(job.name) for job in JOBS)
    jobs = "\n".join(f"  {job.name:<{width}}  {job.about}" for job in JOBS)
    return "\n\n".join(
        [
            f"{_heading_of('Usage:')} {_COMMAND} JOB [key=value …] [group=name …]   (or: python -m jobs.JOB …)",
            f"{_heading_of('Jobs, in the order of use:')}\n{jobs}",
            f"{_COMMAND} JOB --help               every setting of a job, with its default\n"
            f"{_COMMAND} completion bash|zsh|fish  a script that completes jobs, settings and their values\n"
            f"{_COMMAND} --version",
        ]
    )


def _heading_of(text: str) -> str:
    return styled(text, "bold", sys.stdout)


if __name__ == "__main__":
    run_entirespace()
