"""The columns of one row group, each validated as it is decoded; a wrong one is an InputError.

Readers trust nothing (DESIGN §4). Given an index outside its table, FBGEMM logs "setting idx to zero" and trains on.
"""

import numpy as np

from pipeline.dataset.manifest import ManifestField, RowGroup
from pipeline.errors import InputError
from pipeline.kernels.jit import nb
from training.feed.batch import UNKNOWN_GROUP
from training.feed.column_reader import DamagedColumn, ListValues, NullableValues, StoredRowGroup
from training.feed.numeric import squash, standardize


class CheckedColumns:
    """NumPy arrays over the bytes of one row group, validated, with the error message for a wrong column."""

    def __init__(self, stored: StoredRowGroup, counts: RowGroup, where: str) -> None:
        self._stored, self._where = stored, where
        #: int64 [B], and where the impressions of each row begin: int32 [R + 1]
        self.impression_id_B, self.offsets_R = self._lists("impression_id")
        if len(self.impression_id_B) != counts.impressions:
            raise self.error(
                "impression_id", f"{len(self.impression_id_B)} impressions, and the manifest says {counts.impressions}"
            )

    def error(self, column: str, found: str) -> InputError:
        """Return the error to raise: `found` in `column` of this row group."""
        return InputError(
            f"{self._where}, column {column}: {found}; the file is damaged or not this dataset's: "
            "run jobs.preprocess again."
        )

    def most_values(self, entry: ManifestField) -> int:
        """Return a bound on the number of values of a multi-valued field, without decoding it."""
        return self._stored.columns[entry.name].most_values()

    def context_ids(self) -> list[str]:
        """Return the key of each row, as logged."""
        try:
            return self._stored.columns["context_id"].texts(self._stored.num_rows)
        except DamagedColumn as error:
            raise self.error("context_id", str(error)) from error

    def group_ids(self) -> np.ndarray:
        """Return int64 [R]; UNKNOWN_GROUP where missing."""
        return self._numbers_or("group_id", UNKNOWN_GROUP).values

    def label(self, label: str, promised: int | None) -> np.ndarray:
        """Return integers [B], each 0 or 1, of which the manifest says that `promised` are 1."""
        values = self._parallel(label)
        if len(values) and (values.min() < 0 or values.max() > 1):
            raise self.error(label, "a label that is neither 0 nor 1")
        if (found := int(np.count_nonzero(values))) != promised:
            raise self.error(label, f"{found} positives, and the manifest says {promised}")
        return values

    def single_valued(self, entry: ManifestField) -> np.ndarray:
        """Return int32 [N]: the indices of a single-valued field."""
        if entry.scope == "impression":
            indices = self._parallel(entry.name)
        else:
            indices, is_missing, _ = self._numbers_or(entry.name, 0)
            if is_missing is not None:
                raise self.error(entry.name, f"{is_missing.sum()} nulls")
        self._check_indices(entry, indices)
        return indices

    def multi_valued(self, entry: ManifestField) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the indices [V] of a multi-valued field, int32 [N + 1] offsets of its bags, and weights [V] or None."""
        indices, offsets = self._lists(entry.name)
        self._check_indices(entry, indices)
        weights = None
        if entry.weighted:
            weights, weight_offsets = self._lists(f"{entry.name}__weight")
            if not np.array_equal(weight_offsets, offsets):
                raise self.error(f"{entry.name}__weight", f"lists of another length than {entry.name}'s")
            if len(weights) and not (np.isfinite(weights.min()) and np.isfinite(weights.max())):
                raise self.error(f"{entry.name}__weight", "a weight that is not finite")
        if entry.scope == "context":
            return indices, offsets, weights
        lengths = self._parallel(f"{entry.name}__length")
        ends = np.empty(len(lengths) + 1, np.int32)
        all_bits, total = _sum_lengths(lengths, ends)
        if all_bits < 0:
            raise self.error(f"{entry.name}__length", f"the length {lengths.min()}")
        if total != len(indices) or not np.array_equal(ends[self.offsets_R], offsets):
            raise self.error(f"{entry.name}__length", f"lengths that do not add up to those of {entry.name}'s lists")
        return indices, ends, weights

    def numeric_inputs(self, entry: ManifestField) -> np.ndarray:
        """Return float32 [N]: the towers' inputs from a numeric field; a null is 0."""
        values, is_missing, offsets = self._numbers_or(entry.name, 0.0)
        if entry.scope == "impression":
            assert offsets is not None  # check_schema: an impression's column is a list
            self._check_parallel(entry.name, offsets)
        if not np.isfinite(values).all():
            raise self.error(entry.name, "a value that is not finite (a missing one is null)")
        inputs = squash(values, entry)
        if is_missing is not None:
            inputs[is_missing] = 0.0
        return inputs

    def vector_inputs(self, entry: ManifestField) -> np.ndarray:
        """Return float32 [N, width]: the inputs of a dense field; a vector that is missing, all NaN, is zeros."""
        values, offsets = self._lists(entry.name)
        first_N = self.offsets_R if entry.scope == "impression" else np.arange(self._stored.num_rows + 1)
        if not np.array_equal(offsets, first_N.astype(np.int64) * entry.num_inputs):
            raise self.error(entry.name, f"lists that do not have {entry.num_inputs} numbers for each {entry.scope}")
        vectors = values.reshape(-1, entry.num_inputs)
        is_missing = np.isnan(vectors).all(axis=1)
        if not (np.isfinite(vectors).all(axis=1) | is_missing).all():
            raise self.error(entry.name, "a number that is not finite (a missing vector is NaNs alone)")
        inputs = standardize(vectors, entry)
        inputs[is_missing] = 0.0
        return inputs

    def _check_indices(self, entry: ManifestField, indices: np.ndarray) -> None:
        # Read as unsigned numbers, negative ones are large: one maximum finds both kinds of error.
        if len(indices) and int(indices.view(np.uint32).max()) >= entry.num_rows:
            wrong = indices[(indices < 0) | (indices >= entry.num_rows)][0]
            raise self.error(entry.name, f"the index {wrong}, outside 0 to {entry.num_rows - 1} of the vocabulary")

    def _parallel(self, column: str) -> np.ndarray:
        """Return the values of a column that has one for each impression."""
        values, offsets = self._lists(column)
        self._check_parallel(column, offsets)
        return values

    def _check_parallel(self, column: str, offsets: np.ndarray) -> None:
        if not np.array_equal(offsets, self.offsets_R):
            raise self.error(column, "lists of another length than impression_id's")

    def _lists(self, column: str) -> ListValues:
        try:
            return self._stored.columns[column].lists(self._stored.num_rows)
        except DamagedColumn as error:
            raise self.error(column, str(error)) from error

    def _numbers_or(self, column: str, missing: float) -> NullableValues:
        try:
            return self._stored.columns[column].numbers(self._stored.num_rows, missing)
        except DamagedColumn as error:
            raise self.error(column, str(error)) from error


@nb.njit(nogil=True, cache=True)
def _sum_lengths(lengths: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """Write 0 to `ends`, then the sum up to each length. Return all lengths joined by OR, and their sum.

    The first result is negative if a length is. The second is right where the sum overflows `ends`.
    """
    all_bits = total = 0
    ends[0] = 0
    for place in range(len(lengths)):
        all_bits |= lengths[place]
        total += lengths[place]
        ends[place + 1] = total
    return all_bits, total
