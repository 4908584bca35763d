"""python -m jobs.evaluate run=RUN split=test [truth=RAW/truth_test.parquet] [ranks=2]"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()  # the imports take a second

import sys
from dataclasses import dataclass, field

from omegaconf import MISSING

from jobs.entry import exit_without_finalization, imports_not_collected, launch
from pipeline import telemetry
from pipeline.errors import InputError
from pipeline.terminal import command_of, print_next
from training.checkpoint.settings import check_which
from training.distributed.settings import DEVICE_CHOICES
from training.distributed.torchrun import note_error, rank_of_process, speaks, starts_ranks
from training.evaluation.settings import check_calibrator


@dataclass
class EvaluateSettings:
    """conf/evaluate.yaml."""

    run: str = MISSING  # the run that jobs.train has trained: a folder or an address
    split: str = "test"  # train | validation | test
    truth: str | None = None  # RAW/truth_test.parquet of a simulated log
    checkpoint: str = "newest"  # newest | best: the one that validation found best | step-N
    ranks: int = 1  # processes of this host, which this command starts; torchrun starts its own
    data: str | None = None  # where the dataset is now, or another day's; null: where the run found it
    device: str | None = None  # cpu | cuda | auto; null: what the run was trained on, or the CPU where there is no GPU
    ctr_run: str | None = None  # the independent CTR network: a run that predicts p_ctr (ESMM §3.1)
    slices: list[str] = field(default_factory=list)  # figures by single-valued fields, user_impressions, user_purchases
    calibrator: str | None = None  # platt | isotonic, fitted on validation: RUN/calibrator.json, and figures with it

    def __post_init__(self) -> None:
        check_which(self.checkpoint, "checkpoint")
        if len(set(self.slices)) < len(self.slices):
            raise InputError(f"slices={self.slices} names one twice; name each once.")
        check_calibrator(self.calibrator, self.split)
        if self.device is not None and self.device not in DEVICE_CHOICES:
            raise InputError(f"device={self.device} is not one of {', '.join(DEVICE_CHOICES)}.")


def run(settings: EvaluateSettings) -> None:
    """Predict a split, evaluate the predictions, write the report, and print a table of the figures."""
    if starts_ranks(settings.ranks):
        from training.distributed.launch_ranks import run_on_ranks

        sys.exit(run_on_ranks("jobs.evaluate", sys.argv[1:], settings.ranks))
    # Loaded here: torch and TorchRec take seconds, which a wrong setting need not wait for.
    with imports_not_collected():
        from training.checkpoint.remote_run import local_run
        from training.distributed.world import join
        from training.run import run_folder
        from training.run.build import settings_to_predict
        from training.run.evaluate import evaluate_split
        from training.run.evaluated_run import evaluated_run, local_file
        from training.run.malloc import keep_freed_memory

    keep_freed_memory()
    telemetry.enter_stage("join")
    trained = settings_to_predict(run_folder.load_settings(local_run(settings.run, "run", folders=())), settings.device)
    truth = local_file(settings.truth) if settings.truth else None
    with join(trained.world) as world:
        run_here = evaluated_run(settings.run, "run", world, settings.checkpoint, settings.split)
        ctr_run = evaluated_run(settings.ctr_run, "ctr_run", world) if settings.ctr_run else None
        where = (settings.checkpoint, settings.data, ctr_run.folder if ctr_run else None, settings.slices)
        figures = evaluate_split(
            run_here.folder, trained, settings.split, truth, world, *where, calibrator=settings.calibrator
        )
        with world.agreeing():
            if world.rank == 0:
                run_here.publish()
    if figures is not None:
        telemetry.set_figures({"impressions_total": figures["num_impressions"] or 0}, force=True)
        score = (f"run={settings.run}", "source=aliccp", "source.path=RAW", "out=SCORES")
        print_next(command_of("jobs.score", *score))


if __name__ == "__main__":
    end_on_signals(speaks())
    with exit_without_finalization():
        launch("evaluate", EvaluateSettings, run, speaks=speaks(), rank=rank_of_process(), note_error=note_error)
