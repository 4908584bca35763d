"""python -m jobs.preprocess source=aliccp source.path=RAW out=DATASET, or the same behind spark-submit."""

import sys
from pathlib import Path

# spark-submit runs this file by its path, with jobs/ on sys.path instead of the directory above it. jobs/ has to go: its
# inspect.py would hide the standard library's.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from pipeline.undo import end_on_signals

    end_on_signals()  # the imports take a second

from jobs.entry import launch
from pipeline.config.preprocess import PreprocessSettings


def run(settings: PreprocessSettings) -> None:
    """Preprocess, then print a summary of the dataset, what became of an event log's rows, and the warnings."""
    # Loaded here: numba takes a while, which --help and a wrong setting need not wait for.
    from pipeline.audit.summary import audit_lines, audit_warnings, summarize
    from pipeline.preprocess import preprocess
    from pipeline.spark.session import stop_spark

    try:
        print(summarize(preprocess(settings)), flush=True)
        for line in audit_lines(settings.out):
            print(line, flush=True)
        for warning in audit_warnings(settings.out):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    finally:
        stop_spark()


if __name__ == "__main__":
    launch("preprocess", PreprocessSettings, run)
