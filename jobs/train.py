"""python -m jobs.train ranks=2 data=DATASET model=esmm out=RUN, or torchrun … -m jobs.train (docs/security.md)"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()  # the imports take a second

import sys

from jobs.entry import exit_without_finalization, imports_not_collected, launch
from pipeline.telemetry import enter_stage
from training.distributed.torchrun import note_error, rank_of_process, speaks, starts_ranks
from training.run.settings import TrainSettings


def run(settings: TrainSettings) -> None:
    """Join the world, build or resume, train; a run that a signal has stopped ends with a status that says so."""
    if starts_ranks(settings.ranks):
        from training.distributed.launch_ranks import run_on_ranks

        sys.exit(run_on_ranks("jobs.train", sys.argv[1:], settings.ranks))
    # Loaded here: torch and TorchRec take seconds, which a wrong setting need not wait for.
    with imports_not_collected():
        from training.distributed.world import join
        from training.run.malloc import keep_freed_memory
        from training.run.trainer import Trainer

    keep_freed_memory()
    enter_stage("join")
    with join(settings.world) as world:
        status = Trainer(settings, world).fit()
    sys.exit(status)


if __name__ == "__main__":
    end_on_signals(speaks())
    with exit_without_finalization():
        launch("train", TrainSettings, run, speaks=speaks(), rank=rank_of_process(), note_error=note_error)
