"""The script of a batch job for sbatch: its options, the environment of the cluster, then what stands in *.bash beside this file.

Whatever comes from a setting is quoted.
"""

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError
from training.submission.plan import SEED_MARK, SPARK_JOBS, BatchJob
from training.submission.run_stage import words_of_stage
from training.submission.settings import EnvironmentSettings, NodeSize, SubmitSettings, TrainingSize

_SCRIPTS_FOLDER = Path(__file__).parent
#: Before its time is up a training has so long to save.
_SAVE_S = 300
_MODULE_FUNCTION = """\
if ! type module >/dev/null 2>&1; then
  for file in /etc/profile.d/{modules,lmod,z00_lmod,z01_lmod}.sh; do
    if [[ -r $file ]]; then . "$file"; fi
  done
fi
type module >/dev/null 2>&1 || { echo "error: module is not there on $(hostname); leave environment.modules out." >&2; exit 2; }
"""


def script_of(job: BatchJob, settings: SubmitSettings) -> str:
    """Return the whole script of a job. Raises InputError for a path that sbatch cannot take."""
    trains = job.stage.job == "jobs.train"
    parts = [
        "#!/usr/bin/env bash",
        "# Written by jobs.submit; sbatch THIS_FILE submits it once more, without waiting for another job.",
        *(f"#SBATCH {quoted_for_sbatch(option)}" for option in _sbatch_options(job, settings)),
        "set -euo pipefail",
        ': "${SLURM_JOB_ID:?is not set; submit this script with sbatch}"',
        *_environment_lines(settings.environment),
        *_variables(job, settings),
        "",
        (_SCRIPTS_FOLDER / ("train.bash" if trains else "one_node.bash")).read_text(encoding="utf-8"),
    ]
    return "\n".join(parts)


def log_pattern(job: BatchJob, settings: SubmitSettings) -> str:
    """Return the log's name as sbatch reads it: %j becomes the number of the job. Raises InputError for a backslash."""
    if "\\" in settings.out:
        raise InputError(f"out={settings.out} has a backslash, which sbatch does not take in a log's name; rename it.")
    number = "%A_%a" if job.tasks else "%j"
    return f"{settings.out.replace('%', '%%')}/logs/{job.name}-{number}.log"


def quoted_for_sbatch(text: str) -> str:
    """Quote a word of a #SBATCH line as for a shell, but that sbatch reads a backslash between quotation marks too."""
    return shlex.quote(text.replace("\\", "\\\\"))


def size_of(job: BatchJob, settings: SubmitSettings) -> NodeSize:
    """Return the size of a job."""
    sizes = settings.sizes
    if job.stage.job in SPARK_JOBS:
        return sizes.spark
    return {"jobs.train": sizes.train, "jobs.evaluate": sizes.evaluate}.get(job.stage.job, sizes.table)


def numbers_of_array(job: BatchJob) -> str:
    """Return the tasks of an array as sbatch takes them."""
    return f"{job.tasks[0]}-{job.tasks[-1]}" if len(job.tasks) > 1 else str(job.tasks[0])


def _sbatch_options(job: BatchJob, settings: SubmitSettings) -> list[str]:
    size, slurm = size_of(job, settings), settings.slurm
    options = [
        f"--job-name={settings.name}-{job.name}",
        f"--output={log_pattern(job, settings)}",
        "--open-mode=append",
        "--requeue",
        f"--nodes={size.nodes if isinstance(size, TrainingSize) else 1}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={size.cpus}",
        f"--mem={size.memory_gb}G",
        f"--time={size.minutes}",
    ]
    options += [f"--array={numbers_of_array(job)}"] if job.tasks else []
    options += [f"--gpus-per-node={size.gpus}"] if size.gpus else []
    options += [f"--signal=B:USR1@{_SAVE_S}"] if job.stage.job == "jobs.train" else []
    for name in ("partition", "account", "qos"):
        options += [f"--{name}={getattr(slurm, name)}"] if getattr(slurm, name) else []
    return [*options, *slurm.options]


def _environment_lines(environment: EnvironmentSettings) -> Iterable[str]:
    yield f"cd {shlex.quote(environment.folder or os.getcwd())}"
    if environment.modules:
        yield "set +eu # module's own scripts do not live with these"
        yield _MODULE_FUNCTION + "\n".join(f"module load {shlex.quote(name)} || exit 2" for name in environment.modules)
        yield "set -eu"
    for name, value in environment.variables.items():
        yield f"export {name}={shlex.quote(value)}"


def _variables(job: BatchJob, settings: SubmitSettings) -> Iterable[str]:
    environment, size = settings.environment, size_of(job, settings)
    yield 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # since Slurm 22.05 srun no longer takes it from sbatch'
    yield 'export SPARK_LOCAL_DIRS="${SPARK_LOCAL_DIRS:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}"'
    if job.tasks:
        yield "seed=$SLURM_ARRAY_TASK_ID"
    yield f"python={shlex.quote(environment.python or ('python' if environment.container else sys.executable))}"
    yield f"srun_options=({_quoted(_pyxis(environment))})"
    yield f"inside=({_quoted(_apptainer(environment, size.gpus > 0))})"
    stage = words_of_stage(job.stage, job.ledger)
    command = [job.stage.job, *job.stage.words]
    if isinstance(size, TrainingSize):
        slurm, threads = settings.slurm, max(1, size.cpus // size.ranks_of_node)
        yield f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"'
        yield f"ranks={size.ranks_of_node} rendezvous={slurm.rendezvous} port={slurm.port} max_requeues={slurm.max_requeues}"
        yield f"stage=({_quoted(stage)})"
    elif job.has_ledger:
        command = ["training.submission.run_stage", "run", *stage]
    yield f"module=({_quoted(command)})"


def _pyxis(environment: EnvironmentSettings) -> list[str]:
    if not environment.container or environment.runtime != "pyxis":
        return []
    folder = environment.folder or os.getcwd()
    mounts = ",".join(f"{mount}:{mount}" if ":" not in mount else mount for mount in environment.mounts)
    words = [f"--container-image={environment.container}", f"--container-workdir={folder}"]
    return [*words, *([f"--container-mounts={mounts}"] if mounts else [])]


def _apptainer(environment: EnvironmentSettings, has_gpus: bool) -> list[str]:
    if not environment.container or environment.runtime != "apptainer":
        return []
    words = ["apptainer", "exec", f"--pwd={environment.folder or os.getcwd()}", *(["--nv"] if has_gpus else [])]
    return [*words, *(f"--bind={mount}" for mount in environment.mounts), environment.container]


def _quoted(words: Iterable[str]) -> str:
    """Quote words for bash; where one has the seed, bash puts it in."""
    return " ".join(
        '"$seed"'.join(part and shlex.quote(part) for part in word.split(SEED_MARK)) or "''" for word in words
    )
