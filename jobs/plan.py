"""python -m jobs.plan data=DATASET cluster=8x8xH100 [rows.user_id=48000000 …]: does a training run fit, and how is it spread?

Takes every setting of jobs.train and checks them as jobs.train would. Exits with status 2 where a rank's memory is too
small. Nothing is trained and no GPU is needed.
"""

import sys

from jobs.entry import imports_not_collected, launch
from jobs.output import EXIT_INPUT
from training.planning.settings import FeasibilitySettings


def run(settings: FeasibilitySettings) -> None:
    """Estimate the run on the cluster and print the estimate."""
    # Loaded here: torch and TorchRec take seconds, which a wrong setting need not wait for.
    with imports_not_collected():
        from training.planning.feasibility import assess
        from training.planning.feasibility_page import feasibility_lines

    feasibility = assess(settings)
    print("\n".join(feasibility_lines(feasibility, sys.argv[1:])))
    if not feasibility.fits:
        sys.exit(EXIT_INPUT)


if __name__ == "__main__":
    launch("plan", FeasibilitySettings, run)
