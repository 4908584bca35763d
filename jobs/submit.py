"""python -m jobs.submit cluster=slurm raw=RAW out=OUT train_args="model=esm2" sizes.train.nodes=2 [score=TODAY] [dry_run=true]"""

from jobs.entry import launch
from training.submission.manifests import write_manifests
from training.submission.plan import plan_jobs, with_absolute_paths
from training.submission.settings import SubmitSettings
from training.submission.slurm import submit_to_slurm


def run(settings: SubmitSettings) -> None:
    """Submit the stages that are not done."""
    if settings.cluster == "slurm":
        settings = with_absolute_paths(settings)
    jobs = plan_jobs(settings)
    if not jobs:
        print("All stages are finished, with these settings and inputs; nothing to submit.", flush=True)
    elif settings.cluster == "slurm":
        submit_to_slurm(jobs, settings)
    else:
        write_manifests(jobs, settings)


if __name__ == "__main__":
    launch("submit", SubmitSettings, run)
