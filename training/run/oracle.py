"""The true probabilities of a simulated log, beside the predictions of the same impressions."""

# Shapes: N impressions.

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError

_COLUMNS = ("p_ctr", "p_daction", "p_cvr")


class Oracle:
    """The columns of a truth file, found by impression_id: 12 bytes an impression where ids are consecutive, else 20."""

    def __init__(self, path: Path) -> None:
        """Read the file; InputError if it cannot be read, lacks a column, or holds what is no probability."""
        try:
            names = pq.read_schema(path).names
            if not {"impression_id", "p_ctr", "p_cvr"} <= set(names):
                raise InputError(
                    f"truth={path} lacks impression_id, p_ctr or p_cvr; give the file that jobs.simulate wrote."
                )
            id_N = _read_column(path, "impression_id")
            self._columns = {name: _read_column(path, name) for name in _COLUMNS if name in names}
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"truth={path} cannot be read ({error}); jobs.simulate writes truth_<split>.parquet."
            ) from error
        for name, column_N in self._columns.items():
            if len(column_N) and not (column_N.min() >= 0 and column_N.max() <= 1):  # NaN is in no order
                raise InputError(
                    f"truth={path}: {name} is not a probability in every row; give the file that jobs.simulate wrote."
                )
        if len(id_N) and not (np.diff(id_N) > 0).all():
            order_N = np.argsort(id_N)
            id_N = id_N[order_N]
            self._columns = {name: column_N[order_N] for name, column_N in self._columns.items()}
        self._first_id, self._num_rows = int(id_N[0]) if len(id_N) else 0, len(id_N)
        is_consecutive = len(id_N) > 0 and int(id_N[-1]) - self._first_id == len(id_N) - 1
        self._id_N = None if is_consecutive else id_N

    def append_to(self, table: pa.Table) -> pa.Table:
        """Append the true probabilities of the impressions of `table`, as true_p_ctr, …; InputError for one that is not there."""
        wanted_N = table.column("impression_id").to_numpy()
        place_N = wanted_N - self._first_id if self._id_N is None else np.searchsorted(self._id_N, wanted_N)
        row_N = np.clip(place_N, 0, max(self._num_rows - 1, 0))
        if self._num_rows == 0:
            missing_N = np.ones(len(wanted_N), bool)
        else:
            missing_N = row_N != place_N if self._id_N is None else self._id_N[row_N] != wanted_N
        if missing_N.any():
            raise InputError(
                f"The truth lacks impression_id={wanted_N[missing_N][0]}; give the truth file of the same log and split."
            )
        for name, column_N in self._columns.items():
            table = table.append_column(f"true_{name}", pa.array(column_N[row_N]))
        return table


def _read_column(path: Path, name: str) -> NDArray:
    """Read one column, by row groups, so that it is in memory once."""
    file = pq.ParquetFile(path)
    column_N = np.empty(file.metadata.num_rows, file.schema_arrow.field(name).type.to_pandas_dtype())
    start = 0
    for piece in file.iter_batches(1 << 20, columns=[name]):
        column_N[start : start + len(piece)] = piece.column(0).to_numpy(zero_copy_only=False)
        start += len(piece)
    return column_N
