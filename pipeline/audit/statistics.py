"""Exact tallies of every row of a split: counted in the task that writes it, and merged on the driver.

The tallies read the columns of the dataset (DESIGN §4), and do not depend on how rows are made. A count is binned by
its bit length: bin 0 is 0, bin b is 2^(b−1) … 2^b − 1. Indices go by falling count, so bins of the index are a histogram
from the most frequent ids of a field to the rarest. Bin 0 is missing, bin 1 is out of vocabulary.
"""

# Shapes: N rows, R records of a scope (contexts or impressions), V values.
# `counts` of a row or context are its impressions and its labels, in the order of manifest.LABELS.

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.audit.distinct import Distinct
from pipeline.dataset.arrow_columns import array_of, flat, is_number
from pipeline.dataset.kinds import VECTOR
from pipeline.dataset.manifest import LABELS
from pipeline.features.fields import Catalogue
from pipeline.features.moments import Moments
from pipeline.kernels.jit import nb

NUM_BINS = 32
_BIT_LENGTH = np.array([value.bit_length() for value in range(1 << 16)], np.uint8)


def _bins() -> np.ndarray:
    return np.zeros(NUM_BINS, np.int64)


@dataclass
class FieldTally:
    """The tally of a categorical field: values by bit length of the index, records by bit length of their number."""

    index_bins: np.ndarray = field(default_factory=_bins)  # bin 0: records without a value
    length_bins: np.ndarray = field(default_factory=_bins)
    most: int = 0  # values of one record

    def merge(self, other: "FieldTally") -> None:
        """Add another task's counts."""
        self.index_bins += other.index_bins
        self.length_bins += other.length_bins
        self.most = max(self.most, other.most)

    def to_json(self) -> dict[str, Any]:
        """Return the tally as plain JSON."""
        return {"index": self.index_bins.tolist(), "length": self.length_bins.tolist(), "most": self.most}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "FieldTally":
        """Read what `to_json` returned."""
        return cls(np.array(raw["index"], np.int64), np.array(raw["length"], np.int64), raw["most"])

    def add_single_valued(self, index_R: np.ndarray) -> None:
        """Add records of a single-valued field."""
        index_bins = _bins()
        _tally(index_R, index_bins)
        self.index_bins += index_bins
        self.length_bins[:2] += index_bins[0], len(index_R) - index_bins[0]
        self.most = max(self.most, int(index_bins[0] < len(index_R)))

    def add_multi_valued(self, length_R: np.ndarray, index_V: np.ndarray) -> None:
        """Add records of a multi-valued field; the values of each stand one behind the other."""
        _tally(index_V, self.index_bins)
        length_bins = _bins()
        _tally(length_R, length_bins)
        self.length_bins += length_bins
        self.index_bins[0] += length_bins[0]
        self.most = max(self.most, int(length_R.max(initial=0)))


@dataclass
class NumberTally:
    """The tally of a numeric or dense field: exact moments of its numbers, and their range. A vector is one value."""

    missing: int = 0
    values: int = 0
    low: float = np.inf
    high: float = -np.inf
    moments: Moments = field(default_factory=lambda: Moments(1))

    @property
    def mean_std(self) -> tuple[float, float]:
        """Mean and population standard deviation; 0 without a value."""
        return self.moments.mean_std(0)

    def merge(self, other: "NumberTally") -> None:
        """Add another task's values."""
        self.missing += other.missing
        self.values += other.values
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.moments.merge(other.moments.to_bytes())

    def to_json(self) -> dict[str, Any]:
        """Return the tally as plain JSON."""
        moments = np.frombuffer(self.moments.to_bytes(), np.int64).tolist()
        return {"number": [self.missing, self.values, self.low, self.high], "moments": moments}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "NumberTally":
        """Read what `to_json` returned."""
        tally = cls(*raw["number"])
        tally.moments.merge(np.array(raw["moments"], np.int64).tobytes())
        return tally

    def add(self, values: pa.Array) -> None:
        """Add values (float32), null where missing."""
        value_V = np.ascontiguousarray(values.drop_null().to_numpy())
        self.missing += values.null_count
        self.values += len(value_V)
        if len(value_V):
            self.low, self.high = min(self.low, float(value_V.min())), max(self.high, float(value_V.max()))
            self.moments.add(value_V.reshape(-1, 1))

    def add_vectors(self, numbers: np.ndarray, width: int) -> None:
        """Add the numbers of vectors, one vector after the other; a missing one is NaNs."""
        is_there = ~np.isnan(numbers[::width])
        self.add(pa.array(numbers[np.repeat(is_there, width)]))
        self.missing += int(np.count_nonzero(~is_there))
        self.values -= (width - 1) * int(np.count_nonzero(is_there))


@dataclass
class Statistics:
    """The tallies of one split, or of one of its files."""

    fields: dict[str, FieldTally | NumberTally] = field(default_factory=dict)
    #: impressions of a context → contexts of that size, and the clicks, dactions and conversions in them
    sizes: dict[int, np.ndarray] = field(default_factory=dict)
    users: Distinct = field(default_factory=Distinct)
    contexts: Distinct = field(default_factory=Distinct)

    def add(self, table: pa.Table, catalogue: Catalogue, key_N: np.ndarray, counts: np.ndarray) -> None:
        """Tally rows; all rows of a context are among them, one behind the other.

        `key_N` is the key of each row's context, `counts` the impressions of each row and its labels in the order of
        manifest.LABELS. A context that was cut into several rows counts once.
        """
        is_first_N = np.r_[True, key_N[1:] != key_N[:-1]]
        self._add_sizes(np.add.reduceat(counts, np.flatnonzero(is_first_N)))
        self.contexts.add(key_N[is_first_N])
        self.users.add(array_of(table, "group_id").filter(pa.array(is_first_N)).drop_null().to_numpy())
        for entry in catalogue.fields:
            column = array_of(table, entry.name)
            tally = self.fields.setdefault(entry.name, NumberTally() if is_number(table, entry.name) else FieldTally())
            if entry.scope == "context":
                values = column if is_first_N.all() else column.filter(pa.array(is_first_N))
            else:
                values = column.flatten()
            if entry.stored == VECTOR and isinstance(tally, NumberTally):
                numbers = values.flatten() if entry.scope == "context" else values
                tally.add_vectors(numbers.to_numpy(), entry.num_numbers)
            elif isinstance(tally, NumberTally):
                tally.add(values)
            elif entry.arity == "one":
                tally.add_single_valued(values.to_numpy())
            elif entry.scope == "context":
                tally.add_multi_valued(np.diff(values.offsets.to_numpy()), values.flatten().to_numpy())
            else:
                lengths = flat(table, f"{entry.name}__length")
                tally.add_multi_valued(lengths.to_numpy(), values.to_numpy())

    def merge(self, other: "Statistics") -> None:
        """Add those of another file."""
        for name, tally in other.fields.items():
            mine: Any = self.fields.setdefault(name, type(tally)())
            mine.merge(tally)
        for size, counts in other.sizes.items():
            self.sizes[size] = self.sizes.get(size, np.zeros_like(counts)) + counts
        self.users.merge(other.users)
        self.contexts.merge(other.contexts)

    def report(self, keep: Callable[[str, np.ndarray], str]) -> dict[str, Any]:
        """Return plain JSON for the driver; `keep` saves the hashes of distinct ids, which may be many, and names them."""
        distinct = {"users": keep("users", self.users.hashes), "contexts": keep("contexts", self.contexts.hashes)}
        fields = {name: tally.to_json() for name, tally in self.fields.items()}
        sizes = [[size, *counts.tolist()] for size, counts in self.sizes.items()]
        return {"fields": fields, "sizes": sizes, "distinct": distinct}

    @classmethod
    def of_report(cls, raw: Mapping[str, Any], kept: Callable[[str], np.ndarray]) -> "Statistics":
        """Read what `report` returned; `kept` loads the hashes that it saved."""
        fields = {
            name: (NumberTally if "number" in tally else FieldTally).from_json(tally)
            for name, tally in raw["fields"].items()
        }
        sizes = {size: np.array(counts, np.int64) for size, *counts in raw["sizes"]}
        users, contexts = (Distinct(kept(raw["distinct"][what])) for what in ("users", "contexts"))
        return cls(fields, sizes, users, contexts)

    def _add_sizes(self, context_counts: np.ndarray) -> None:
        """Count contexts, and the labels in them, by their impressions."""
        size_N, size_numbers = np.unique(context_counts[:, 0], return_inverse=True)
        totals = np.zeros((len(size_N), 1 + len(LABELS)), np.int64)
        np.add.at(totals, size_numbers, np.c_[np.ones(len(context_counts), np.int64), context_counts[:, 1:]])
        for size, counts in zip(size_N.tolist(), totals, strict=True):
            self.sizes[size] = self.sizes.get(size, 0) + counts


@nb.njit(cache=True)
def _tally(value_V, bins):  # type: ignore[no-untyped-def]
    """Count non-negative int32 values by their bit length."""
    for i in range(len(value_V)):
        value = value_V[i]
        if value < 1 << 16:
            bins[_BIT_LENGTH[value]] += 1
        else:
            bins[16 + _BIT_LENGTH[value >> 16]] += 1
