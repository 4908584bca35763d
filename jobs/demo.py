"""python -m jobs.demo out=demo: simulate, preprocess, train and evaluate on this machine."""

from jobs.entry import compose, launch
from pipeline.errors import InputError
from training.run.demo import DemoSettings, run_demo
from training.run.settings import TrainSettings


def run(settings: DemoSettings) -> None:
    """Check the model before anything is simulated, and run the stages."""
    try:
        train = compose("train", TrainSettings, ["data=DATASET", "out=RUN", f"model={settings.model}"])
    except InputError as error:
        raise InputError(f"model={settings.model} cannot be trained by the demo. {error}") from error
    run_demo(settings, train.model)


if __name__ == "__main__":
    launch("demo", DemoSettings, run)
