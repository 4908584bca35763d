"""Write simulated raw logs: python -m jobs.simulate out=RAW impressions=1000000 seed=1 [rates=demo] [actions=true]."""

from jobs.entry import launch
from pipeline.simulate.run import SimulateSettings, simulate

if __name__ == "__main__":
    launch("simulate", SimulateSettings, simulate)
