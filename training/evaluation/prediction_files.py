"""The predictions of a split as columns, each read from its Parquet files when it is asked for."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.dataset.manifest import LABELS
from pipeline.errors import InputError
from training.evaluation.sorted_scores import Array
from training.feed.batch import UNKNOWN_GROUP


class _FilePart(NamedTuple):
    """The rows [start, stop) of the split, as one row group of one file."""

    file: Path
    number: int
    start: int
    stop: int


class PredictionFiles(Mapping[str, Array]):
    """The numeric columns of a folder of predictions, one value an impression; a missing group_id is UNKNOWN_GROUP.

    A column is read by row groups, on all cores, into one array. Labels are kept, other columns are not: 43 million
    impressions take 172 MB for each column of probabilities in use. Raises InputError, which ends with `remedy`, if a file
    cannot be read.
    """

    def __init__(self, folder: Path, remedy: str, num_threads: int | None = None) -> None:
        self._folder, self._remedy = folder, remedy
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._groups: list[_FilePart] = []
        self._kept: dict[str, Array] = {}
        files = sorted(folder.glob("*.parquet"))
        if not files:
            raise InputError(f"{folder} has no predictions; {remedy}")
        with self._reading():
            self.schema = pq.read_schema(files[0])
            for file in files:
                metadata = pq.read_metadata(file)
                if metadata.schema.to_arrow_schema().remove_metadata() != self.schema.remove_metadata():
                    raise pa.ArrowInvalid(f"{file.name} has other columns than {files[0].name}")
                for number in range(metadata.num_row_groups):
                    start = self.num_rows
                    self._groups.append(_FilePart(file, number, start, start + metadata.row_group(number).num_rows))
        self._names = [name for name in self.schema.names if name != "context_id"]

    @property
    def num_rows(self) -> int:
        return self._groups[-1].stop if self._groups else 0

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        if name in self._kept:
            return self._kept[name]
        column = np.empty(self.num_rows, self.schema.field(name).type.to_pandas_dtype())

        def fill(part: _FilePart) -> None:
            values = self.read(part, name)
            if name == "group_id":
                values = values.fill_null(UNKNOWN_GROUP)
            column[part.start : part.stop] = values.to_numpy()

        self._fill(fill)
        if name in LABELS:
            self._kept[name] = column
        return column

    def read(self, part: _FilePart, name: str) -> pa.ChunkedArray:
        """Read one column of one row group."""
        return pq.ParquetFile(part.file).read_row_group(part.number, [name], use_threads=False).column(0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def contexts(self) -> Array:
        """Return a hash of each impression's context, int64."""
        hash_N = np.empty(self.num_rows, np.int64)

        def fill(part: _FilePart) -> None:
            keys = self.read(part, "context_id").combine_chunks().dictionary_encode()
            hashes = np.array(
                [xxhash.xxh3_64_intdigest(key.encode()) for key in keys.dictionary.to_pylist()], np.uint64
            )
            hash_N[part.start : part.stop] = hashes.view(np.int64)[keys.indices.to_numpy()]

        self._fill(fill)
        return hash_N

    def true_columns(self) -> Mapping[str, Array] | None:
        """Return the oracle's columns, p_ctr, p_cvr and p_daction, which the files call true_p_ctr, …; None without them."""
        names = [name.removeprefix("true_") for name in self._names if name.startswith("true_p_")]
        return _TrueColumnsOf(self, names) if names else None

    def _fill(self, fill: Callable[[_FilePart], None]) -> None:
        with self._reading(), ThreadPoolExecutor(self._num_threads, "predictions") as threads:
            for _ in threads.map(fill, self._groups):
                pass

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"The predictions in {self._folder} cannot be read ({error}); {self._remedy}") from error


class _TrueColumnsOf(Mapping[str, Array]):
    def __init__(self, files: PredictionFiles, names: list[str]) -> None:
        self._files, self._names = files, names

    def __getitem__(self, name: str) -> Array:
        return self._files[f"true_{name}"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
