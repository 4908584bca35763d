"""Write simulated raw logs: python -m jobs.simulate out=RAW impressions=1000000 seed=1 [rates=demo], or layout=events."""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()  # the imports take a second

from jobs.entry import launch
from pipeline.simulate.run import SimulateSettings, simulate

if __name__ == "__main__":
    launch("simulate", SimulateSettings, simulate)
