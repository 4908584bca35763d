"""The evidence that the leakage check weighs: what each field shows in a sample of a split, as bags of keys.

A record is a context row or an impression, as the field's scope says. A key is an index, a number of values, or a bin
of weights or numbers. A record without any value has the key NO_KEY, because absence is evidence as well.
"""

# Shapes: R records of a field's scope, V keys of all records.

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.arrow_columns import flat, is_number, lengths
from pipeline.dataset.kinds import VECTOR
from pipeline.dataset.manifest import LABELS, DatasetFile
from pipeline.features.fields import Field
from pipeline.locations import open_location

NO_KEY = -1
_MAX_COUNTED = 255  # values of a record; more are the same evidence
_MAX_VECTOR_NUMBERS = 64  # of a vector that are looked at, each for itself
_NUM_QUANTILE_BINS = 64  # of weights and numbers, of equal mass in the rows that the rates are learned from


@dataclass(frozen=True)
class Sample:
    """Some context rows of a split."""

    table: pa.Table
    rows: np.ndarray  # the row of each impression
    labels: dict[str, np.ndarray]  # label → bool, one for each impression

    @classmethod
    def of(cls, table: pa.Table) -> "Sample":
        """Take all rows of a table."""
        table = table.combine_chunks()
        rows = np.repeat(np.arange(len(table)), lengths(table, "click"))
        present = [label for label in LABELS if label in table.column_names]
        return cls(table, rows, {label: flat(table, label).to_numpy() > 0 for label in present})

    @property
    def impressions(self) -> int:
        """The number of impressions."""
        return len(self.rows)

    def halves(self) -> tuple["Sample", "Sample"]:
        """Divide the contexts into two halves, by the last digit of their key: a context is in one of them."""
        is_even = np.array([int(key[-1], 16) % 2 == 0 for key in self.table.column("context_id").to_pylist()], np.bool_)
        return Sample.of(self.table.filter(pa.array(is_even))), Sample.of(self.table.filter(pa.array(~is_even)))


@dataclass(frozen=True)
class KeyBags:
    """One bag of keys for each record; none is empty."""

    key_V: np.ndarray
    length_R: np.ndarray


def read_sample(dataset: str | os.PathLike[str], files: Sequence[DatasetFile], impressions: int) -> Sample | None:
    """Read the first row groups of a split that hold so many impressions together, or all; None if it has no row.

    Rows lie in the order of a hash of their context's key, so the first ones are a random sample.
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


def evidence_of(entry: Field, learned: Sample, scored: Sample) -> Iterator[tuple[str, KeyBags, KeyBags]]:
    """Yield (kind of evidence, bags that rates are learned from, bags that are scored) of one field."""
    both = (learned, scored)
    if entry.stored == VECTOR:
        vectors = [flat(sample.table, entry.name).to_numpy().reshape(-1, entry.num_numbers) for sample in both]
        for place in range(min(entry.num_numbers, _MAX_VECTOR_NUMBERS)):
            columns = [numbers[:, place] for numbers in vectors]
            yield f"number {place}", _quantile_bags(columns[0], columns[0]), _quantile_bags(columns[1], columns[0])
        return
    if is_number(learned.table, entry.name):
        numbers = [flat(sample.table, entry.name).fill_null(float("nan")).to_numpy() for sample in both]
        yield "values", _quantile_bags(numbers[0], numbers[0]), _quantile_bags(numbers[1], numbers[0])
        return
    values = [flat(sample.table, entry.name).to_numpy() for sample in both]
    if entry.arity == "one":
        yield "values", _one_key_bags(values[0]), _one_key_bags(values[1])
        return
    num_values = [_num_values(sample, entry) for sample in both]
    yield "values", _index_bags(values[0], num_values[0]), _index_bags(values[1], num_values[1])
    counts = [np.minimum(length_R, _MAX_COUNTED) for length_R in num_values]
    yield "number of values", _one_key_bags(counts[0]), _one_key_bags(counts[1])
    if entry.weighted:
        means = [_mean_weights(sample, entry, length_R) for sample, length_R in zip(both, num_values, strict=True)]
        yield "weights", _quantile_bags(means[0], means[0]), _quantile_bags(means[1], means[0])


def _one_key_bags(key_R: np.ndarray) -> KeyBags:
    return KeyBags(key_R, np.ones(len(key_R), np.int64))


def _quantile_bags(value_R: np.ndarray, learned_R: np.ndarray) -> KeyBags:
    """Return numbers as bins that hold equally many of the learned ones; NaN is NO_KEY."""
    known = learned_R[~np.isnan(learned_R)]
    edges = (
        np.unique(np.quantile(known, np.linspace(0, 1, _NUM_QUANTILE_BINS + 1)[1:-1])) if len(known) else np.empty(0)
    )
    return _one_key_bags(np.where(np.isnan(value_R), NO_KEY, np.searchsorted(edges, value_R)))


def _index_bags(index_V: np.ndarray, length_R: np.ndarray) -> KeyBags:
    """Return bags of indices, with NO_KEY in the empty ones."""
    bag_length_R = np.maximum(length_R, 1)
    key_V = np.full(int(bag_length_R.sum()), NO_KEY, np.int32)
    key_V[np.repeat(length_R > 0, bag_length_R)] = index_V
    return KeyBags(key_V, bag_length_R)


def _mean_weights(sample: Sample, entry: Field, length_R: np.ndarray) -> np.ndarray:
    """Return the mean weight of each record, NaN if it has no value."""
    weight_V = flat(sample.table, f"{entry.name}__weight").to_numpy()
    total_R = np.bincount(np.repeat(np.arange(len(length_R)), length_R), weight_V, minlength=len(length_R))
    return np.where(length_R > 0, total_R / np.maximum(length_R, 1), np.nan)


def _num_values(sample: Sample, entry: Field) -> np.ndarray:
    if entry.scope == "impression":
        return flat(sample.table, f"{entry.name}__length").to_numpy().astype(np.int64)
    return lengths(sample.table, entry.name)
