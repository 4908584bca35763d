"""python -m jobs.score run=RUN source=aliccp source.path=RAW out=SCORES, or data=DATASET; or the same behind spark-submit."""

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

from jobs.entry import imports_not_collected, launch
from pipeline import telemetry
from pipeline.config.score import ScoreSettings
from pipeline.terminal import close_job
from training.checkpoint.settings import check_which


def run(settings: ScoreSettings) -> None:
    """Score, then print how many impressions were scored and how many lines are in quarantine."""
    check_which(settings.checkpoint, "checkpoint")
    telemetry.enter_stage("input")
    # Loaded here: torch takes seconds, which a wrong setting need not wait for.
    with imports_not_collected():
        from pipeline.passes.scorer import TrainedModel
        from pipeline.score import score, summarize_scores
        from pipeline.spark.session import stop_spark
        from training.serving.row_scorer import describe_run

    found = describe_run(settings.run, settings.checkpoint)
    model = TrainedModel(found.scorer, found.outputs, found.dataset, found.manifest, found.origin)
    started = time.monotonic()
    try:
        scores = score(settings, model)
        telemetry.set_figures(
            {
                "impressions_total": sum(scores.totals.values()),
                "quarantined_lines": sum(scores.audit.get("quarantined", {}).values()),
            },
            force=True,
        )
        print(summarize_scores(scores), flush=True)
        numbers = [f"{sum(scores.totals.values()):,} impressions"]
        close_job("scores", settings.out, time.monotonic() - started, numbers)
    finally:
        stop_spark()


if __name__ == "__main__":
    launch("score", ScoreSettings, run)
