"""python -m jobs.gbdt data=DATASET out=RUN target=cvr [ctr_run=RUN]: GBDT, the competitor of ESM² that is no network.

Fits XGBoost's trees to the train split, predicts a split with them and evaluates it as jobs.evaluate does.
"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()  # the imports take a second

from jobs.entry import imports_not_collected, launch
from training.gbdt.settings import GbdtSettings


def run(settings: GbdtSettings) -> None:
    """Fit, predict, evaluate, and print the AUCs."""
    # Loaded here: torch takes seconds, which a wrong setting need not wait for.
    with imports_not_collected():
        from training.gbdt.run import run_gbdt
        from training.run.journal import say

    figures = run_gbdt(settings)
    shown = {name: value for name, value in figures.items() if name.endswith("_auc") and value is not None}
    say(" · ".join(f"{name} {value:.4f}" for name, value in shown.items()))


if __name__ == "__main__":
    launch("gbdt", GbdtSettings, run)
