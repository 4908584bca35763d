"""Sampling rates and learning rates, chosen on validation with the first seed; nothing here reads the test split."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

from pipeline.errors import InputError
from training.run.systems import GBDT_JOB, System

#: What a candidate is chosen by: pCVR over the clicked of validation; pCTR of a CTR network.
CHOSEN_BY, CTR_CHOSEN_BY = "cvr_auc", "ctr_auc"
_LEARNING_RATE = "optimizer.towers.lr"


def candidates_of(system: System, learning_rates: Sequence[float]) -> list[tuple[str, ...]]:
    """Return every combination of the values that are searched, as words of the command; one without words for none."""
    if system.job == GBDT_JOB:
        return [()]
    searched: dict[str, Sequence[float]] = dict(system.searched)
    if learning_rates:
        searched[_LEARNING_RATE] = learning_rates
    names = list(searched)
    return [
        tuple(f"{name}={value:g}" for name, value in zip(names, values, strict=True))
        for values in product(*searched.values())
    ]


def choose_best(name: str, metric: str, found: Mapping[tuple[str, ...], float | None]) -> tuple[str, ...]:
    """Return the candidate of the highest `metric`, the first of equal ones. Raises InputError where none is defined."""
    best = max(found, key=lambda words: -math.inf if found[words] is None else float(found[words] or 0.0))
    if found[best] is None:
        raise InputError(
            f"{metric} of {name} is undefined on validation for every candidate; give the dataset a validation split with "
            "clicks and conversions: split.validation of jobs.preprocess."
        )
    return best
