"""python -m jobs.track run=RUN uri=http://127.0.0.1:5000 [export=EXPORT]"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from jobs.entry import launch
from pipeline.errors import InputError
from pipeline.locations import is_address
from training.checkpoint.remote_run import RemoteRun
from training.run.mlflow_server import ServerError
from training.run.mlflow_sync import sync_run
from training.run.settings import check_tracking_uri


@dataclass
class TrackSettings:
    """conf/track.yaml."""

    run: str = MISSING  # the folder of a run that jobs.train has trained, or is training
    uri: str = MISSING  # of an MLflow server: http://127.0.0.1:5000
    experiment: str = "entirespace"  # made where there is none
    export: str | None = None  # a folder of jobs.export, uploaded too

    def __post_init__(self) -> None:
        check_tracking_uri("uri", self.uri)


def run(settings: TrackSettings) -> None:
    """Upload what the server lacks, and print how far it is."""
    export = Path(settings.export) if settings.export else None
    if export and not export.is_dir():
        raise InputError(f"export={export} is not a folder; give the out=… of jobs.export.")
    try:
        copy = None
        if is_address(settings.run):
            copy = RemoteRun(settings.run, "run")
            copy.fetch(("dataset", "evaluations"))
        run_here = copy.folder if copy else Path(settings.run)
        state = sync_run(run_here, settings.uri, settings.experiment, export=export)
        if copy:
            copy.publish()  # RUN/mlflow.json: how far the server is
    except ServerError as error:
        raise InputError(f"uri={settings.uri} cannot be used ({error}); check the server and its address.") from error
    print(f"{settings.uri} has run {state.run_id}: steps to {state.train_step}, {len(state.files)} files", flush=True)


if __name__ == "__main__":
    launch("track", TrackSettings, run)
