"""Features of an impression as columns of numbers, which is all that trees split on.

An id is no number, so each categorical field gives the trees what the train split says of its ids:

    rate     (positives + a·p) / (instances + a), p the rate of all and a the smoothing
    count    ln(1 + instances)
    weight   Σ|w| of the values, of a multi-valued field alone

Over a bag, rate and count are the means by |w|; without a value they are missing. Numeric and dense fields come as the
towers see them. The rate of an id contains the label of each of its instances, so trees would learn the labels by heart
from it: a context that they learn from has its rates from the contexts of the other folds (by a hash of its key).
"""

# Shapes: B impressions, N contexts or impressions, F fields of a scope, V values of all of them.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest, ManifestField
from training.feed.batch import Bags, Batch


@dataclass(frozen=True)
class IdCounts:
    """Instances and positives of every id of one field, by fold."""

    instances: np.ndarray  # int64 [folds, rows]
    positives: np.ndarray

    def rates_and_counts(self, left_out: int | None, mean: float, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rate and ln(1 + instances) of each id, without the fold `left_out`."""
        instances, positives = self.instances.sum(0), self.positives.sum(0)
        if left_out is not None:
            instances, positives = instances - self.instances[left_out], positives - self.positives[left_out]
        return (positives + smoothing * mean) / (instances + smoothing), np.log1p(instances)


class Features:
    """The columns of a dataset's impressions: first counts over the train split (`count`), then numbers (`columns_of`)."""

    def __init__(self, manifest: Manifest, folds: int, smoothing: float) -> None:
        self._fields = {scope: manifest.fields_of(scope, INDEX) for scope in ("context", "impression")}
        self._num_numbers = {scope: manifest.num_inputs(scope) for scope in self._fields}
        self._folds, self._smoothing = folds, smoothing
        self.counts = {
            entry.name: IdCounts(*np.zeros((2, folds, entry.num_rows), np.int64))
            for fields in self._fields.values()
            for entry in fields
        }
        self.num_instances = self.num_positives = 0
        self._tables: dict[tuple[str, int | None], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        names = []
        for scope, fields in self._fields.items():
            for entry in fields:
                names += [f"{entry.name}:{what}" for what in _columns_of_field(entry)]
            names += [f"{scope}:{number}" for number in range(self._num_numbers[scope])]
        return names

    @property
    def mean(self) -> float:
        """The rate of all instances."""
        return self.num_positives / max(1, self.num_instances)

    def fold_of(self, batch: Batch) -> np.ndarray:
        """Return the fold of each context, int64 [C]."""
        hashes = (xxhash.xxh3_64_intdigest(key.encode()) % self._folds for key in batch.context_id)
        return np.fromiter(hashes, np.int64, batch.num_contexts)

    def count(self, batch: Batch, label_B: np.ndarray) -> None:
        """Count the instances and positives of each id of `batch`; a value that a bag has twice counts twice."""
        index_B, fold_C = batch.context_of_impression.numpy(), self.fold_of(batch)
        self.num_instances += len(label_B)
        self.num_positives += int(label_B.sum())
        of_contexts = np.bincount(index_B, minlength=len(fold_C)), np.bincount(index_B, label_B, len(fold_C))
        self._count_bags("context", batch.context, fold_C, of_contexts)
        self._count_bags("impression", batch.impression, fold_C[index_B], (np.ones(len(label_B)), label_B))

    def _count_bags(self, scope: str, bags: Bags, fold_N: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> None:
        for entry, (ids_V, _, bag_V) in zip(self._fields[scope], _split_bags(bags, len(fold_N)), strict=True):
            counts = self.counts[entry.name]
            for table, weight_N in zip((counts.instances, counts.positives), weights, strict=True):
                np.add.at(table, (fold_N[bag_V], ids_V), weight_N[bag_V].astype(np.int64))

    def columns_of(self, batch: Batch, learning: bool) -> np.ndarray:
        """Return float32 [B, columns]; `learning` leaves out of an id's rate the fold of the context."""
        index_B = batch.context_of_impression.numpy()
        fold_C = self.fold_of(batch) if learning else np.full(batch.num_contexts, -1)
        contexts = self._columns_of_scope("context", batch.context, batch.context_numeric.numpy(), fold_C)
        impressions = self._columns_of_scope(
            "impression", batch.impression, batch.impression_numeric.numpy(), fold_C[index_B]
        )
        return np.hstack([contexts[index_B], impressions])

    def _columns_of_scope(self, scope: str, bags: Bags, numeric_ND: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
        columns: list[np.ndarray] = []
        for entry, (ids_V, weight_V, bag_V) in zip(self._fields[scope], _split_bags(bags, len(fold_N)), strict=True):
            total_N = np.bincount(bag_V, weight_V, len(fold_N))
            with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 of a bag without values: missing
                for values in self._values_of(entry, ids_V, fold_N[bag_V]):
                    columns.append(np.bincount(bag_V, weight_V * values, len(fold_N)) / total_N)
            if entry.arity == "many":
                columns.append(total_N)
        return np.column_stack([*columns, numeric_ND]).astype(np.float32) if columns else numeric_ND

    def _values_of(self, entry: ManifestField, ids_V: np.ndarray, fold_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rate and the count of each value, of the folds that it may see."""
        rate_V, count_V = np.empty(len(ids_V)), np.empty(len(ids_V))
        for fold in np.unique(fold_V).tolist():
            key = (entry.name, None if fold < 0 else fold)
            if key not in self._tables:
                self._tables[key] = self.counts[entry.name].rates_and_counts(key[1], self.mean, self._smoothing)
            chosen = fold_V == fold
            rate_V[chosen], count_V[chosen] = (table[ids_V[chosen]] for table in self._tables[key])
        return rate_V, count_V


def _columns_of_field(entry: ManifestField) -> Sequence[str]:
    return ("rate", "count", "weight") if entry.arity == "many" else ("rate", "count")


def _split_bags(bags: Bags, num_bags: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the ids, |weights| and bags of the values of each field."""
    lengths_FN = bags.lengths.numpy().reshape(-1, num_bags)
    if not len(lengths_FN):
        return []
    ends = np.cumsum(lengths_FN.sum(1))[:-1]
    ids, weights = (np.split(part.numpy(), ends) for part in (bags.values, bags.weights.abs()))
    return [
        (ids_V, weight_V.astype(np.float64), np.repeat(np.arange(num_bags), lengths_N))
        for ids_V, weight_V, lengths_N in zip(ids, weights, lengths_FN, strict=True)
    ]
