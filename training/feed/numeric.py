"""What goes into the towers beside the embeddings: a number as tanh((v - µ)/σ) (ESM² eq. 17), a vector as (v - µ)/σ."""

import numpy as np

from pipeline.dataset.manifest import ManifestField
from pipeline.errors import InputError


def squash(values: np.ndarray, entry: ManifestField) -> np.ndarray:
    """Return the towers' inputs for `values` of the numeric field `entry`: float32, computed in float64.

    µ and σ are those of the train split. Where it had one distinct value or none, every input is 0.
    """
    mean, std = entry.mean, entry.std
    if not std or mean is None:
        return np.zeros(len(values), np.float32)
    assert not isinstance(mean, tuple)
    assert not isinstance(std, tuple)
    return np.tanh((values.astype(np.float64) - mean) / std).astype(np.float32)


def standardize(vectors: np.ndarray, entry: ManifestField) -> np.ndarray:
    """Return float32 [N, width]: (v - µ)/σ of each number of `vectors`, computed in float64; a copy without moments.

    µ and σ are those of a number's own place over the train split; where it had one value only, or none, its input is 0.
    """
    if entry.mean is None or entry.std is None:
        return np.array(vectors, np.float32)
    mean, std = np.array(entry.mean, np.float64), np.array(entry.std, np.float64)
    return np.where(std > 0, (vectors - mean) / np.where(std > 0, std, 1.0), 0.0).astype(np.float32)


def check_moments(entry: ManifestField) -> None:
    """Raise InputError where the manifest gives a mean or a standard deviation that is not possible: one for each input."""
    moments = [np.atleast_1d(np.array(moment, np.float64)) for moment in (entry.mean, entry.std) if moment is not None]
    has_all = all(len(moment) == entry.num_inputs and np.isfinite(moment).all() for moment in moments)
    if not has_all or (entry.std is not None and moments[-1].min() < 0.0):
        raise InputError(
            f"The manifest gives the {entry.kind} field {entry.name} mean={entry.mean} and std={entry.std}, which is not possible; "
            "run jobs.preprocess again."
        )
