"""python -m jobs.gbdt data=DATASET out=RUN target=cvr [ctr_run=RUN]: GBDT, the competitor of ESM² that is no network.

Fits XGBoost's trees to the train split, predicts a split with them and evaluates it as jobs.evaluate does.
"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()  # the imports take a second

from jobs.entry import imports_not_collected, launch
from training.gbdt.settings import GbdtSettings


def run(settings: GbdtSettings) -> None:
    """Fit, predict, evaluate, and print a table of the figures."""
    # Loaded here: torch takes seconds, which a wrong setting need not wait for.
    with imports_not_collected():
        from training.gbdt.run import run_gbdt

    run_gbdt(settings)


if __name__ == "__main__":
    launch("gbdt", GbdtSettings, run)
