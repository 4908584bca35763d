"""What a sample of a split shows of each field, as bags of keys: the evidence that the leakage check weighs.

A record is a context row or an impression, as the field's scope says. A key is an index, a number of values, or a bin of
weights or numbers; a record without any has the key NOTHING, for absence is evidence as well.
"""

# Shapes: N context rows, I impressions, P records of a field's scope (N or I), V keys.

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.arrow_columns import flat, is_number, lengths
from pipeline.dataset.manifest import LABELS, DatasetFile
from pipeline.features.fields import Field
from pipeline.locations import open_location

NOTHING = -1
_MOST_COUNTED = 255  # values of a record; more are the same evidence
_NUM_BINS = 64  # of weights and numbers, of equal mass in the rows that the rates are learned from


@dataclass(frozen=True)
class Sample:
    """Some context rows of a split."""

    table: pa.Table
    row_I: np.ndarray  # the row of each impression
    label_I: dict[str, np.ndarray]  # bool

    @classmethod
    def of(cls, table: pa.Table) -> "Sample":
        """From rows."""
        table = table.combine_chunks()
        row_I = np.repeat(np.arange(len(table)), lengths(table, "click"))
        present = [label for label in LABELS if label in table.column_names]
        return cls(table, row_I, {label: flat(table, label).to_numpy() > 0 for label in present})

    @property
    def impressions(self) -> int:
        """How many there are."""
        return len(self.row_I)

    def halves(self) -> tuple["Sample", "Sample"]:
        """Its contexts in two halves, by the last digit of their key: a context is in one of them."""
        is_even = np.array([int(key[-1], 16) % 2 == 0 for key in self.table.column("context_id").to_pylist()], np.bool_)
        return Sample.of(self.table.filter(pa.array(is_even))), Sample.of(self.table.filter(pa.array(~is_even)))


@dataclass(frozen=True)
class Bags:
    """One bag of keys for each record; none is empty."""

    key_V: np.ndarray
    length_P: np.ndarray


def read_sample(dataset: str | os.PathLike[str], files: Sequence[DatasetFile], impressions: int) -> Sample | None:
    """The first row groups of a split that hold so many impressions together, or all; None where it has no row.

    Rows lie in the order of a hash of their context's key, so the first are as good a sample as any.
    """
    filesystem, root = open_location(dataset)
    tables, read = [], 0
    for file in files:
        if read >= impressions:
            break
        with pq.ParquetFile(f"{root}/{file.path}", filesystem=filesystem) as parquet:
            for number, group in enumerate(file.row_groups):
                if read < impressions:
                    tables.append(parquet.read_row_group(number, use_threads=False))
                    read += group.impressions
    return Sample.of(pa.concat_tables(tables)) if tables else None


def evidence_of(entry: Field, learned: Sample, scored: Sample) -> Iterator[tuple[str, Bags, Bags]]:
    """(what it is, in the rows that rates are learned from, in those that are scored) of one field."""
    both = (learned, scored)
    if is_number(learned.table, entry.name):
        numbers = [flat(sample.table, entry.name).fill_null(float("nan")).to_numpy() for sample in both]
        yield "values", _binned(numbers[0], numbers[0]), _binned(numbers[1], numbers[0])
        return
    values = [flat(sample.table, entry.name).to_numpy() for sample in both]
    if entry.arity == "one":
        yield "values", _singles(values[0]), _singles(values[1])
        return
    num_values = [_lengths(sample, entry) for sample in both]
    yield "values", _filled(values[0], num_values[0]), _filled(values[1], num_values[1])
    counts = [np.minimum(length_P, _MOST_COUNTED) for length_P in num_values]
    yield "number of values", _singles(counts[0]), _singles(counts[1])
    if entry.weighted:
        means = [_mean_weights(sample, entry, length_P) for sample, length_P in zip(both, num_values, strict=True)]
        yield "weights", _binned(means[0], means[0]), _binned(means[1], means[0])


def _singles(key_P: np.ndarray) -> Bags:
    return Bags(key_P, np.ones(len(key_P), np.int64))


def _binned(value_P: np.ndarray, learned_P: np.ndarray) -> Bags:
    """Numbers as bins of equal mass of the learned ones; NaN is NOTHING."""
    there_P = learned_P[~np.isnan(learned_P)]
    edges = np.unique(np.quantile(there_P, np.linspace(0, 1, _NUM_BINS + 1)[1:-1])) if len(there_P) else np.empty(0)
    return _singles(np.where(np.isnan(value_P), NOTHING, np.searchsorted(edges, value_P)))


def _filled(index_V: np.ndarray, length_P: np.ndarray) -> Bags:
    """Bags of indices, with NOTHING in the empty ones."""
    full_P = np.maximum(length_P, 1)
    key_V = np.full(int(full_P.sum()), NOTHING, np.int32)
    key_V[np.repeat(length_P > 0, full_P)] = index_V
    return Bags(key_V, full_P)


def _mean_weights(sample: Sample, entry: Field, length_P: np.ndarray) -> np.ndarray:
    """The mean weight of each record, NaN where it has no value."""
    weight_V = flat(sample.table, f"{entry.name}__weight").to_numpy()
    total_P = np.bincount(np.repeat(np.arange(len(length_P)), length_P), weight_V, minlength=len(length_P))
    return np.where(length_P > 0, total_P / np.maximum(length_P, 1), np.nan)


def _lengths(sample: Sample, entry: Field) -> np.ndarray:
    if entry.scope == "impression":
        return flat(sample.table, f"{entry.name}__length").to_numpy().astype(np.int64)
    return lengths(sample.table, entry.name)
