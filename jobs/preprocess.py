"""python -m jobs.preprocess source=aliccp source.path=RAW out=DATASET, or the same behind spark-submit."""

import sys
from pathlib import Path

# spark-submit runs this file by its path, with jobs/ on sys.path instead of the directory above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.entry import launch
from pipeline.manifest import Manifest
from pipeline.preprocess import preprocess
from pipeline.settings import PreprocessSettings


def summary(manifest: Manifest) -> str:
    """What the dataset holds, in a line for each split and one for what was set aside."""
    lines = [
        f"{split}: " + ", ".join(f"{number:,} {name}" for name, number in total.items())
        for split, total in manifest.totals.items()
    ]
    set_aside = {reason: number for reason, number in manifest.audit["quarantined"].items() if number}
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in set_aside.items())
    return "\n".join([*lines, f"quarantined: {reasons or 'nothing'}"])


def run(settings: PreprocessSettings) -> None:
    """Preprocess and say what came of it."""
    print(summary(preprocess(settings)), flush=True)


if __name__ == "__main__":
    launch("preprocess", PreprocessSettings, run)
