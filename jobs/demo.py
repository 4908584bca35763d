"""python -m jobs.demo out=demo: simulate, preprocess, train and evaluate on this machine."""

from jobs.entry import launch
from training.run.demo import DemoSettings, run_demo

if __name__ == "__main__":
    about = "simulate raw logs, preprocess them with Spark, train on two ranks, evaluate; finished stages are reused."
    launch("demo", DemoSettings, run_demo, about)
