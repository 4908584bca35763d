"""python -m jobs.pipeline raw=RAW out=OUT train_args="model=esm2 ranks=2" [days=[D1,D2]] [score=TODAY] [export=true]"""

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()

from jobs.entry import launch
from training.run.chain import ChainSettings, run_chain

if __name__ == "__main__":
    launch("pipeline", ChainSettings, run_chain)
