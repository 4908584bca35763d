"""cluster=slurm: write the scripts beside the run, and give them to sbatch, each to start when the one before it is done."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, printable, writing
from pipeline.locations import is_address
from training.submission.plan import BatchJob
from training.submission.settings import SubmitSettings
from training.submission.slurm_scripts import log_pattern, script_of

_COMMANDS = ("sbatch", "scontrol", "scancel")
_ANSWER_S = 120.0


def submit_to_slurm(jobs: Sequence[BatchJob], settings: SubmitSettings) -> None:
    """Submit the jobs and print their numbers. Raises InputError where there is no Slurm here, or it refuses one of them.

    Then nothing stays in the queue: the jobs before it are cancelled.
    """
    if is_address(settings.out):
        raise InputError(
            f"out={settings.out} is an address, and Slurm writes its logs there; give a path that every node sees."
        )
    scripts = [(job, Path(settings.out) / "slurm" / f"{job.name}.sbatch", script_of(job, settings)) for job in jobs]
    if settings.dry_run:
        for number, (job, path, text) in enumerate(scripts):
            before = f"${jobs[number - 1].name}" if number else ""
            print(f"# {shlex.join(_command(job, path, before))}\n{text}", flush=True)
        return
    _check_commands()
    for folder in ("slurm", "logs"):
        with writing(f"out={settings.out}"):
            (Path(settings.out) / folder).mkdir(parents=True, exist_ok=True)
    numbers: list[str] = []
    for job, path, text in scripts:
        with writing(f"out={settings.out}"):
            write_whole(path, text)
        try:
            numbers.append(_sbatch(_command(job, path, numbers[-1] if numbers else "")))
        except InputError:
            if numbers:
                subprocess.run(["scancel", *numbers], check=False, timeout=_ANSWER_S)
            raise
        after = f" after job {numbers[-2]}" if len(numbers) > 1 else ""
        print(f"{job.name}: job {numbers[-1]}{after}, {log_pattern(job, settings)}", flush=True)


def _check_commands() -> None:
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"cluster=slurm needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not on the PATH of this host; "
            "submit from a host of the cluster, or print the scripts with dry_run=true."
        )


def _command(job: BatchJob, path: Path, before: str) -> list[str]:
    """Return the command that submits `path`; `before` is the number of the job that it waits for, or ""."""
    words = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
    if before:
        # aftercorr: seed 3 is evaluated when seed 3 is trained, whatever becomes of the others.
        words.append(f"--dependency={'aftercorr' if job.follows_its_own else 'afterok'}:{before}")
    return [*words, str(path)]


def _sbatch(command: Sequence[str]) -> str:
    """Run sbatch; return the number of the job."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_S)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"sbatch did not answer within {_ANSWER_S:g} s; look at the controller with scontrol ping."
        ) from error
    number = done.stdout.strip().partition(";")[0]  # a federation adds ;CLUSTER
    if done.returncode != 0 or not number.isdigit():
        said = printable(" ".join(done.stderr.split()) or "it said nothing")
        raise InputError(f"sbatch refused {command[-1]} ({said}); nothing stays in the queue.")
    return number
