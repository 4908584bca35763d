"""The leakage check: how well each field alone predicts each label, on rows that its rates were not learned from.

A field filled in after the fact (a flag that only buyers have, a count that grows with the click) predicts better than
anything known beforehand. The rate of the label given each key of a field is learned on a sample of train and scored on
a sample of validation. An id that stands on a few rows only therefore gains nothing, however well it fits these.
"""

# Shapes: R records of a field's scope, V keys of all records.

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audit.evidence import KeyBags, Sample, evidence_of, read_sample
from pipeline.audit.figures import rounded
from pipeline.config.preprocess import AuditSettings
from pipeline.dataset.manifest import DatasetFile
from pipeline.features.fields import Field
from pipeline.kernels.auc_histogram import AucHistogram

_PRIOR_POSITIVES = 2.0  # weight of the overall rate in the rate of a key, in impressions of the rarer class
_MIN_PER_CLASS = 20  # positives and negatives in both samples, or the label is not evaluated
_MARGIN = 0.1  # of a leak's AUC above the median of the other fields


@dataclass(frozen=True)
class FieldAuc:
    """The AUC of one field alone on the scored impressions."""

    field: str
    label: str
    auc: float
    error: float  # standard error
    by: str  # the kind of evidence


def leakage(
    dataset: str | os.PathLike[str], files: Sequence[DatasetFile], fields: Sequence[Field], settings: AuditSettings
) -> dict[str, Any]:
    """Return the entry `leakage` of audit.json; reads at most twice `leakage_impressions`, and a row group more."""
    wanted = settings.leakage_impressions
    by_split = {
        split: read_sample(dataset, [file for file in files if file.split == split], wanted)
        for split in ("train", "validation")
    }
    learned, scored, scored_on = by_split["train"], by_split["validation"], "validation"
    found: dict[str, Any] = {"threshold": settings.leakage_auc, "labels": {}, "auc": {}, "named": []}
    if learned is None:
        return found
    if scored is None:
        (learned, scored), scored_on = learned.halves(), "the other half of the train contexts in the sample"
    found["sample"] = {"learned": learned.impressions, "scored": scored.impressions, "scored_on": scored_on}
    aucs = []
    for label in learned.labels:
        counts = {"learned": _classes(learned, label), "scored": _classes(scored, label)}
        found["labels"][label] = counts | {"judged": min(min(pair) for pair in counts.values()) >= _MIN_PER_CLASS}
    labels = [label for label, entry in found["labels"].items() if entry["judged"]]
    for entry in fields if labels else ():
        aucs += field_aucs(entry, learned, scored, labels)
    for result in aucs:
        numbers = {"auc": rounded(result.auc), "error": rounded(result.error), "by": result.by}
        found["auc"].setdefault(result.field, {})[result.label] = numbers
    found["named"] = [
        {"field": result.field, "label": result.label} for result in find_leaks(aucs, settings.leakage_auc)
    ]
    return found


def field_aucs(entry: Field, learned: Sample, scored: Sample, labels: Sequence[str]) -> list[FieldAuc]:
    """Return the AUC of a field for each label, by the kind of evidence that ranks best."""
    best: dict[str, FieldAuc] = {}
    for kind, learned_bags, scored_bags in evidence_of(entry, learned, scored):
        distinct, number_V = np.unique(learned_bags.key_V, return_inverse=True)
        learned_keys = KeyBags(number_V, learned_bags.length_R)
        place_V = np.minimum(np.searchsorted(distinct, scored_bags.key_V), len(distinct) - 1)
        unknown_V = distinct[place_V] != scored_bags.key_V
        scored_keys = KeyBags(np.where(unknown_V, len(distinct), place_V), scored_bags.length_R)
        for label in labels:
            weights_of_evidence = np.r_[_weights_of_evidence(entry, learned_keys, learned, label, len(distinct)), 0.0]
            for by, score_R in _scores(kind, weights_of_evidence, scored_keys):
                scores = score_R[scored.rows] if entry.scope == "context" else score_R
                result = _field_auc(entry.name, label, by, scores, scored)
                if label not in best or result.auc > best[label].auc:
                    best[label] = result
    return list(best.values())


def find_leaks(aucs: Sequence[FieldAuc], threshold: float) -> list[FieldAuc]:
    """Return the AUCs that no field known beforehand reaches: reliably above the threshold, and well above the rest."""
    named = []
    for result in aucs:
        rest = [other.auc for other in aucs if other.label == result.label and other.field != result.field]
        median_of_rest = float(np.median(rest)) if rest else 0.5
        if result.auc - 2 * result.error >= threshold and result.auc >= median_of_rest + _MARGIN:
            named.append(result)
    return named


def leak_warnings(found: Mapping[str, Any]) -> list[str]:
    """Write a warning for each field that was named."""
    warnings = []
    for pair in found["named"]:
        numbers = found["auc"][pair["field"]][pair["label"]]
        warnings.append(
            f"{pair['field']} alone predicts {pair['label']} with an AUC of {numbers['auc']:.3f} "
            f"(by its {numbers['by']}); if it is known only afterwards, leave it out of features.fields."
        )
    return warnings


def _population(sample: Sample, label: str) -> np.ndarray:
    """Return the impressions in which a label can occur (bool): all for a click, the clicked ones for what follows."""
    return np.ones(sample.impressions, np.bool_) if label == "click" else sample.labels["click"]


def _classes(sample: Sample, label: str) -> tuple[int, int]:
    """Count (positives, negatives) of a label in its population."""
    labels = sample.labels[label][_population(sample, label)]
    return int(labels.sum()), int(len(labels) - labels.sum())


def _weights_of_evidence(entry: Field, learned_keys: KeyBags, learned: Sample, label: str, num_keys: int) -> np.ndarray:
    """Return for each key the log odds of the label given it, less those of all impressions (float64).

    0 is a key that is no evidence. Every key starts from the overall rate, with _PRIOR_POSITIVES of the rarer class.
    """
    population = _population(learned, label)
    in_population, positive = population.astype(np.float64), (population & learned.labels[label]).astype(np.float64)
    count_R, positive_R = (
        (in_population, positive)
        if entry.scope == "impression"
        else tuple(
            np.bincount(learned.rows, per_impression, len(learned.table))
            for per_impression in (in_population, positive)
        )
    )
    counts = np.bincount(learned_keys.key_V, np.repeat(count_R, learned_keys.length_R), num_keys)
    positives = np.bincount(learned_keys.key_V, np.repeat(positive_R, learned_keys.length_R), num_keys)
    rate = positive.sum() / in_population.sum()
    prior = _PRIOR_POSITIVES / min(rate, 1 - rate)
    return (
        np.log((positives + prior * rate) / (counts - positives + prior * (1 - rate)))
        - np.log(rate / (1 - rate))
    )  # fmt: skip


def _scores(kind: str, weights_of_evidence: np.ndarray, scored_keys: KeyBags) -> list[tuple[str, np.ndarray]]:
    """Score records by the evidence of their keys: the mean, and for bags of several keys also the strongest."""
    evidence_V = weights_of_evidence[scored_keys.key_V]
    if len(evidence_V) == len(scored_keys.length_R):
        return [(kind, evidence_V)]
    begin_R = np.cumsum(scored_keys.length_R) - scored_keys.length_R
    high_R, low_R = np.maximum.reduceat(evidence_V, begin_R), np.minimum.reduceat(evidence_V, begin_R)
    strongest_R = np.where(high_R >= -low_R, high_R, low_R)
    return [(kind, np.add.reduceat(evidence_V, begin_R) / scored_keys.length_R), ("loudest value", strongest_R)]


def _field_auc(field: str, label: str, by: str, scores: np.ndarray, scored: Sample) -> FieldAuc:
    """Compute the AUC, ties at one half, and its standard error (Hanley and McNeil 1982)."""
    population = _population(scored, label)
    ranks = AucHistogram()
    ranks.add(1 / (1 + np.exp(-scores[population])), scored.labels[label][population])
    auc = ranks.auc()
    assert auc is not None  # both classes are there, or the label is not evaluated
    positives, negatives = _classes(scored, label)
    above, below = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    variance = (auc * (1 - auc) + (positives - 1) * above + (negatives - 1) * below) / (positives * negatives)
    return FieldAuc(field, label, auc, math.sqrt(max(variance, 0.0)), by)
