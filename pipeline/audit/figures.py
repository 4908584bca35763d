"""The figures of audit.json that follow from the tallies: fields, contexts, drift between splits, ids in two splits."""

# Shapes: N distinct sizes of contexts. Bins are those of statistics.py.

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.audit.statistics import FieldTally, NumberTally, Statistics
from pipeline.dataset.manifest import LABELS
from pipeline.features.fields import Catalogue

PERCENTILES = (50, 90, 99)
_DIGITS = 6  # significant ones of a float; NumPy sums in another order on another machine


def figures(catalogue: Catalogue, by_split: Mapping[str, Statistics]) -> dict[str, Any]:
    """Return `fields`, `contexts`, `drift` and `overlap` of audit.json, for the splits that have rows."""
    return {
        "fields": {
            entry.name: {split: _field(found.fields[entry.name]) for split, found in by_split.items()}
            for entry in catalogue.fields
        },
        "contexts": {split: context_sizes(found.sizes) for split, found in by_split.items()},
        "drift": {entry.name: drift(entry.name, by_split) for entry in catalogue.fields},
        "overlap": {"users": _overlap(by_split, "users"), "contexts": _overlap(by_split, "contexts")},
    }


def _field(tally: FieldTally | NumberTally) -> dict[str, Any]:
    """Describe one field in one split; a record is a context or an impression, as the field's scope says."""
    if isinstance(tally, NumberTally):
        found = {"records": tally.missing + tally.values, "without": tally.missing, "values": tally.values}
        if not tally.values:
            return found
        mean, std = tally.mean_std
        return found | {"mean": rounded(mean), "std": rounded(std), "min": tally.low, "max": tally.high}
    return {
        "records": int(tally.length_bins.sum()),
        "without": int(tally.length_bins[0]),
        "values": int(tally.index_bins[1:].sum()),
        "out_of_vocabulary": int(tally.index_bins[1]),
        "most": tally.most,
        "index_bins": _trimmed(tally.index_bins),
        "length_bins": _trimmed(tally.length_bins),
    }


def context_sizes(sizes: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Count contexts by their impressions (1, 2–3, 4–7, …) with the labels in them; add mean and percentiles.

    `sizes` maps impressions to [contexts of that size, and the labels in them, in the order of manifest.LABELS].
    """
    size_N = np.array(sorted(sizes), np.int64)
    counts = np.array([sizes[size] for size in size_N.tolist()], np.int64)
    reached_N = np.cumsum(counts[:, 0])
    contexts, impressions = int(reached_N[-1]), int(size_N @ counts[:, 0])
    # The smallest size that at least so many of a hundred contexts do not exceed.
    percentiles = {str(p): int(size_N[np.searchsorted(reached_N, -(-p * contexts // 100))]) for p in PERCENTILES}
    bins = []
    bin_N = np.array([size.bit_length() for size in size_N.tolist()])
    for number in np.unique(bin_N).tolist():
        chosen = bin_N == number
        totals = counts[chosen].sum(axis=0).tolist()
        labels = dict(zip((f"{label}s" for label in LABELS), totals[1:], strict=True))
        bins.append({"from": 1 << number - 1, "to": (1 << number) - 1, "contexts": totals[0],
                     "impressions": int(size_N[chosen] @ counts[chosen, 0]), **labels})  # fmt: skip
    return {
        "contexts": contexts,
        "impressions": impressions,
        "mean": rounded(impressions / contexts),
        "percentiles": percentiles | {"100": int(size_N[-1])},
        "bins": bins,
    }


def drift(name: str, by_split: Mapping[str, Statistics]) -> dict[str, float]:
    """Return split → how far its values of a field are from train's.

    This is the population stability index over the bins of the index, missing and out of vocabulary among them. For
    numbers it is the difference of the means in standard deviations of train.
    """
    if "train" not in by_split:
        return {}
    train = by_split["train"].fields[name]
    found = {}
    for split, statistics in by_split.items():
        other = statistics.fields[name]
        if split == "train":
            continue
        if isinstance(train, NumberTally) and isinstance(other, NumberTally):
            mean, std = train.mean_std
            if train.values and other.values and std > 0:
                found[split] = rounded((other.mean_std[0] - mean) / std)
        elif isinstance(train, FieldTally) and isinstance(other, FieldTally):
            found[split] = rounded(stability_index(train.index_bins, other.index_bins))
    return found


def stability_index(expected: np.ndarray, found: np.ndarray) -> float:
    """Return Σ (q − p) ln(q / p) over the bins that either has.

    Half a value is added to each bin, because an empty one would make the sum infinite.
    """
    used = (expected > 0) | (found > 0)
    p, q = expected[used] + 0.5, found[used] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def _overlap(by_split: Mapping[str, Statistics], what: str) -> dict[str, Any]:
    """Count the distinct ids of each split, and those common to two."""
    distinct = {split: getattr(statistics, what) for split, statistics in by_split.items()}
    return {
        "distinct": {split: seen.count().to_json() for split, seen in distinct.items()},
        "common": {
            f"{one} {other}": distinct[one].common(distinct[other]).to_json()
            for one, other in combinations(distinct, 2)
        },
    }


def rounded(value: float) -> float:
    """Round to as many significant digits as two machines agree on."""
    return float(f"{value:.{_DIGITS}g}")


def _trimmed(bins: np.ndarray) -> list[int]:
    return np.trim_zeros(bins, "b").tolist()
