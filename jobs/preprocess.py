"""python -m jobs.preprocess source=aliccp source.path=RAW out=DATASET, or the same behind spark-submit."""

import sys
import time
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
from pipeline import telemetry
from pipeline.config.preprocess import PreprocessSettings


def run(settings: PreprocessSettings) -> None:
    """Preprocess, then print a summary of the dataset, what became of an event log's rows, and the warnings."""
    # Loaded here: numba takes a while, which --help and a wrong setting need not wait for.
    from pipeline.audit.summary import audit_lines, audit_warnings, summarize, three_numbers
    from pipeline.preprocess import preprocess
    from pipeline.spark.session import stop_spark
    from pipeline.storage.commit import AUDIT_PAGE
    from pipeline.terminal import close_job, command_of

    started = time.monotonic()
    telemetry.enter_stage("input")
    try:
        manifest = preprocess(settings)
        telemetry.set_figures(
            {
                "impressions_total": sum(totals["impressions"] for totals in manifest.totals.values()),
                "quarantined_lines": sum(manifest.audit.get("quarantined", {}).values()),
            },
            force=True,
        )
        model = "esm2" if "daction" in manifest.labels else "esmm"
        print("\n".join([summarize(manifest), *audit_lines(settings.out)]), flush=True)
        close_job(
            "dataset",
            settings.out,
            time.monotonic() - started,
            three_numbers(manifest),
            audit_warnings(settings.out),
            [f"{settings.out}/{AUDIT_PAGE}"],
            command_of("jobs.train", "ranks=2", f"data={settings.out}", f"model={model}", "out=RUN"),
        )
    finally:
        stop_spark()


if __name__ == "__main__":
    launch("preprocess", PreprocessSettings, run)
