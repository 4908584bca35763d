"""Numeric fields: one number goes into the towers as tanh((v - µ)/σ) (ESM² eq. 17), beside the embeddings."""

import math

import numpy as np

from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError


def squashed(values: np.ndarray, entry: ManifestField) -> np.ndarray:
    """float32: what the towers take of `values` of the field `entry`, computed in float64.

    µ and σ are those of the train split; where it had one value only, or none, every input is 0.
    """
    if not entry.std or entry.mean is None:
        return np.zeros(len(values), np.float32)
    return np.tanh((values.astype(np.float64) - entry.mean) / entry.std).astype(np.float32)


def check_moments(entry: ManifestField) -> None:
    """InputError unless the manifest gives a mean and a deviation that can be, or none."""
    finite = all(moment is None or math.isfinite(moment) for moment in (entry.mean, entry.std))
    if not finite or (entry.std or 0.0) < 0.0:
        raise InputError(
            f"The manifest gives the numeric field {entry.name} mean={entry.mean} and std={entry.std}, which cannot be; "
            "run jobs.preprocess again."
        )
