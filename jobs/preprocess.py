"""python -m jobs.preprocess source=aliccp source.path=RAW out=DATASET, or the same behind spark-submit."""

import re
import sys
from pathlib import Path

# spark-submit runs this file by its path, with jobs/ on sys.path instead of the directory above it. jobs/ has to go: its
# inspect.py would hide the standard library's.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.entry import launch
from pipeline.audit.leakage import leak_warnings
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import SPLITS, Manifest
from pipeline.preprocess import preprocess
from pipeline.spark.session import stop_spark
from pipeline.storage.commit import AUDIT_PAGE, read_audit
from pipeline.storage.store import store_of

_ORDER = ("rows", "impressions", "clicks", "dactions", "conversions")


def summary(manifest: Manifest) -> str:
    """Sum up what the dataset holds, in a line for each split and one for what was quarantined."""
    lines = [
        f"{split}: "
        + ", ".join(f"{manifest.totals[split][name]:,} {name}" for name in _ORDER if name in manifest.totals[split])
        for split in SPLITS
        if split in manifest.totals
    ]
    set_aside = {reason: number for reason, number in manifest.audit["quarantined"].items() if number}
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in set_aside.items())
    return "\n".join([*lines, f"quarantined: {reasons or 'nothing'}"])


def warnings(out: str) -> list[str]:
    """List what audit.json says, or does not say, that nobody should overlook."""
    audit, doubt = read_audit(store_of(out))
    leaks = leak_warnings(audit["leakage"]) if "leakage" in audit else []  # a dataset of an earlier release has none
    found = [f"{sentence} {out}/{AUDIT_PAGE} has the other fields." for sentence in leaks]
    return [*found, *([doubt] if doubt else [])]


def run(settings: PreprocessSettings) -> None:
    """Preprocess and say what came of it."""
    try:
        print(summary(preprocess(settings)), flush=True)
        for sentence in warnings(settings.out):
            print(f"warning: {sentence}", file=sys.stderr, flush=True)
    finally:
        stop_spark()


def quoted(argument: str) -> str:
    """`spark.master=local[2]` as people type it, in the quotes that Hydra's grammar wants around brackets."""
    return re.sub(r"\A(spark\.master)=([^'\"]+)\Z", r"\1='\2'", argument)


if __name__ == "__main__":
    sys.argv[1:] = map(quoted, sys.argv[1:])
    launch("preprocess", PreprocessSettings, run)
