"""python -m jobs.plan data=DATASET cluster=8x8xH100 [rows.user_id=48000000 …]: does a training run fit, and how is it spread?

Takes every setting of jobs.train and looks at them as jobs.train would. Exits with status 2 where a rank's memory is too
small. Nothing is trained and no GPU is needed.
"""

import sys

from jobs.entry import EXIT_INPUT, launch
from training.planning.feasibility import FittingSettings, fitted
from training.planning.feasibility_page import page


def run(settings: FittingSettings) -> None:
    """Work it out, print it."""
    fitting = fitted(settings)
    print("\n".join(page(fitting, sys.argv[1:])))
    if not fitting.fits:
        sys.exit(EXIT_INPUT)


if __name__ == "__main__":
    launch("plan", FittingSettings, run)
