"""Numeric fields: one number goes into the towers as tanh((v - µ)/σ) (ESM² eq. 17), beside the embeddings."""

import math

import numpy as np

from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError


def squash(values: np.ndarray, entry: ManifestField) -> np.ndarray:
    """Return the towers' inputs for `values` of the numeric field `entry`: float32, computed in float64.

    µ and σ are those of the train split. Where it had one distinct value or none, every input is 0.
    """
    if not entry.std or entry.mean is None:
        return np.zeros(len(values), np.float32)
    return np.tanh((values.astype(np.float64) - entry.mean) / entry.std).astype(np.float32)


def check_moments(entry: ManifestField) -> None:
    """Raise InputError where the manifest gives a mean or a standard deviation that is not possible."""
    finite = all(moment is None or math.isfinite(moment) for moment in (entry.mean, entry.std))
    if not finite or (entry.std or 0.0) < 0.0:
        raise InputError(
            f"The manifest gives the numeric field {entry.name} mean={entry.mean} and std={entry.std}, which is not possible; "
            "run jobs.preprocess again."
        )
