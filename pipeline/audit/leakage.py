"""The leakage check: what each field alone tells about each label, on rows that its rates were not learned from.

A field that was filled in after the fact (a flag that only buyers have, a count that grows with the click) tells more than
anything that is known beforehand. The rate of the label given each key of a field is learned on a sample of train and scored on
a sample of validation, so that an id which stands on a few rows only, however well it fits these, tells nothing.
"""

# Shapes: P records of a field's scope, I impressions, V keys, D distinct keys.

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audit.evidence import Bags, Sample, evidence_of, read_sample
from pipeline.audit.figures import rounded
from pipeline.config.preprocess import AuditSettings
from pipeline.dataset.manifest import DatasetFile
from pipeline.features.fields import Field
from pipeline.kernels.auc_histogram import RankHistogram

_PRIOR_POSITIVES = 2.0  # weight of the overall rate in the rate of a key
_LEAST = 20  # impressions of either kind in both samples, or the label is not judged
_ABOVE_REST = 0.1  # by how much a leak's AUC exceeds the median of the other fields


@dataclass(frozen=True)
class Judged:
    """How well one field alone ranks the scored impressions."""

    field: str
    label: str
    auc: float
    error: float  # standard error
    by: str  # the kind of evidence


def leakage(
    dataset: str | os.PathLike[str], files: Sequence[DatasetFile], fields: Sequence[Field], settings: AuditSettings
) -> dict[str, Any]:
    """The entry `leakage` of audit.json; reads at most twice `leakage_impressions`, and a row group more."""
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
    judged = []
    for label in learned.label_I:
        counts = {"learned": _classes(learned, label), "scored": _classes(scored, label)}
        found["labels"][label] = counts | {"judged": min(min(pair) for pair in counts.values()) >= _LEAST}
    labels = [label for label, entry in found["labels"].items() if entry["judged"]]
    for entry in fields if labels else ():
        judged += judge(entry, learned, scored, labels)
    for verdict in judged:
        numbers = {"auc": rounded(verdict.auc), "error": rounded(verdict.error), "by": verdict.by}
        found["auc"].setdefault(verdict.field, {})[verdict.label] = numbers
    found["named"] = [
        {"field": verdict.field, "label": verdict.label} for verdict in implausible(judged, settings.leakage_auc)
    ]
    return found


def judge(entry: Field, learned: Sample, scored: Sample, labels: Sequence[str]) -> list[Judged]:
    """The best that any kind of evidence of a field does, for each label."""
    best: dict[str, Judged] = {}
    for kind, learned_bags, scored_bags in evidence_of(entry, learned, scored):
        distinct_D, number_V = np.unique(learned_bags.key_V, return_inverse=True)
        known = Bags(number_V, learned_bags.length_P)
        place_V = np.minimum(np.searchsorted(distinct_D, scored_bags.key_V), len(distinct_D) - 1)
        unknown_V = distinct_D[place_V] != scored_bags.key_V
        asked = Bags(np.where(unknown_V, len(distinct_D), place_V), scored_bags.length_P)
        for label in labels:
            surprise_D = np.r_[_surprise(entry, known, learned, label, len(distinct_D)), 0.0]
            for by, score_P in _scores(kind, surprise_D, asked):
                score_I = score_P[scored.row_I] if entry.scope == "context" else score_P
                verdict = _verdict(entry.name, label, by, score_I, scored)
                if label not in best or verdict.auc > best[label].auc:
                    best[label] = verdict
    return list(best.values())


def implausible(judged: Sequence[Judged], threshold: float) -> list[Judged]:
    """The verdicts that no field known beforehand would get: reliably above the threshold, and well above the rest."""
    named = []
    for verdict in judged:
        rest = [other.auc for other in judged if other.label == verdict.label and other.field != verdict.field]
        usual = float(np.median(rest)) if rest else 0.5
        if verdict.auc - 2 * verdict.error >= threshold and verdict.auc >= usual + _ABOVE_REST:
            named.append(verdict)
    return named


def sentences(found: Mapping[str, Any]) -> list[str]:
    """One sentence for each field that was named."""
    said = []
    for pair in found["named"]:
        numbers = found["auc"][pair["field"]][pair["label"]]
        said.append(
            f"{pair['field']} alone tells {pair['label']} with an AUC of {numbers['auc']:.3f} (by its {numbers['by']}); "
            "if it is known only afterwards, leave it out of features.fields."
        )
    return said


def _population(sample: Sample, label: str) -> np.ndarray:
    """bool [I]: the impressions among which a label is asked for: all for the click, the clicked ones for what follows."""
    return np.ones(sample.impressions, np.bool_) if label == "click" else sample.label_I["click"]


def _classes(sample: Sample, label: str) -> tuple[int, int]:
    """(positives, negatives) of a label in its population."""
    label_I = sample.label_I[label][_population(sample, label)]
    return int(label_I.sum()), int(len(label_I) - label_I.sum())


def _surprise(entry: Field, known: Bags, learned: Sample, label: str, num_keys: int) -> np.ndarray:
    """float64 [D]: log odds of the label given a key, less those of all impressions; 0 for a key that says nothing."""
    population_I = _population(learned, label)
    count_I, positive_I = population_I.astype(np.float64), (population_I & learned.label_I[label]).astype(np.float64)
    count_P, positive_P = (
        (count_I, positive_I)
        if entry.scope == "impression"
        else tuple(np.bincount(learned.row_I, per_I, len(learned.table)) for per_I in (count_I, positive_I))
    )
    count_D = np.bincount(known.key_V, np.repeat(count_P, known.length_P), num_keys)
    positive_D = np.bincount(known.key_V, np.repeat(positive_P, known.length_P), num_keys)
    rate = positive_I.sum() / count_I.sum()
    prior = _PRIOR_POSITIVES / min(rate, 1 - rate)
    return (
        np.log((positive_D + prior * rate) / (count_D - positive_D + prior * (1 - rate)))
        - np.log(rate / (1 - rate))
    )  # fmt: skip


def _scores(kind: str, surprise_D: np.ndarray, asked: Bags) -> list[tuple[str, np.ndarray]]:
    """How much the keys of each record speak for the label: their mean, and where there are several the loudest."""
    surprise_V = surprise_D[asked.key_V]
    if len(surprise_V) == len(asked.length_P):
        return [(kind, surprise_V)]
    begin_P = np.cumsum(asked.length_P) - asked.length_P
    high_P, low_P = np.maximum.reduceat(surprise_V, begin_P), np.minimum.reduceat(surprise_V, begin_P)
    loudest_P = np.where(high_P >= -low_P, high_P, low_P)
    return [(kind, np.add.reduceat(surprise_V, begin_P) / asked.length_P), ("loudest value", loudest_P)]


def _verdict(field: str, label: str, by: str, score_I: np.ndarray, scored: Sample) -> Judged:
    """AUC with ties at one half, and its standard error (Hanley and McNeil 1982)."""
    population_I = _population(scored, label)
    ranks = RankHistogram()
    ranks.add(1 / (1 + np.exp(-score_I[population_I])), scored.label_I[label][population_I])
    auc = ranks.auc()
    assert auc is not None  # both classes are there, or the label is not judged
    positives, negatives = _classes(scored, label)
    above, below = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    variance = (auc * (1 - auc) + (positives - 1) * above + (negatives - 1) * below) / (positives * negatives)
    return Judged(field, label, auc, math.sqrt(max(variance, 0.0)), by)
