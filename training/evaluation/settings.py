"""The settings of an evaluation; loads no SciPy (see training.run.settings)."""

from pipeline.errors import InputError

PLATT, ISOTONIC = "platt", "isotonic"
CALIBRATORS = (PLATT, ISOTONIC)
#: The split that calibrators are fitted on: neither trained on nor reported.
FITTED_SPLIT = "validation"
#: The highest number of a user's purchases in each part but the last (ESM² Figure 7).
PURCHASES = (10, 20, 50)


def check_calibrator(kind: str | None, split: str) -> None:
    """Raise InputError for an unknown calibrator, and for one that is to be evaluated where it is fitted."""
    if kind is None:
        return
    if kind not in CALIBRATORS:
        raise InputError(f"calibrator={kind} is not one of {', '.join(CALIBRATORS)}; null fits none.")
    if split == FITTED_SPLIT:
        raise InputError(
            f"calibrator={kind} is fitted on split={FITTED_SPLIT}, so its figures there would say nothing; give split=test."
        )
