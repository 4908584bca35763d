"""The model as the pipeline sees it: context rows in, probabilities out. Who knows the model hands in how to open it.

`pipeline` needs no torch. jobs.score gives it a `TrainedModel`, whose `open` travels to the tasks by pickle.
"""

# Shapes: N context rows, R their impressions.

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.dataset.arrow_columns import array_of
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError


class RowScorer(Protocol):
    """A model that is open in this process."""

    def __call__(self, rows: pa.Table, /) -> Mapping[str, np.ndarray]:
        """Return output → probability [R] of the impressions of `rows`, row by row.

        `rows` have the columns of dataset.schema.schema_of without labels, and indices of the model's dataset.
        """


@dataclass(frozen=True)
class TrainedModel:
    """A trained model: how a worker opens it, and what its probabilities are of."""

    open: Callable[[], RowScorer]  # picklable and hashable; a process calls it once
    outputs: tuple[str, ...]
    dataset: str  # the folder with the manifest and the vocabularies that the indices are of
    manifest: Manifest = field(repr=False)
    origin: Mapping[str, str]  # what made it: run, checkpoint, step and so on, for the metadata of every file


@lru_cache(maxsize=1)
def opened(open_scorer: Callable[[], RowScorer]) -> RowScorer:
    """Open the model, once a process: Spark's workers serve one task after another."""
    return open_scorer()


def score_schema(model: TrainedModel, timed: bool) -> pa.Schema:
    """Return the columns of scores: one row an impression. The metadata says what made them."""
    columns = [
        pa.field("impression_id", pa.int64(), nullable=False),
        pa.field("context_id", pa.string(), nullable=False),
        pa.field("group_id", pa.int64()),
    ]
    columns += [pa.field("timestamp", pa.int64(), nullable=False)] if timed else []
    columns += [pa.field(name, pa.float32(), nullable=False) for name in model.outputs]
    return pa.schema(columns, metadata={f"entirespace.{name}": text for name, text in model.origin.items()})


def scores_of(rows: pa.Table, scorer: RowScorer, schema: pa.Schema, most: int) -> Iterator[pa.Table]:
    """Yield the scores of `rows` in their order, the model being given about `most` impressions at once.

    Raises InputError where the model gives what is no probability, nor a quotient of two.
    """
    ids = array_of(rows, "impression_id")
    end_N = ids.offsets.to_numpy().astype(np.int64)[1:] - ids.offsets[0].as_py()
    start = 0
    while start < len(end_N):
        before = int(end_N[start - 1]) if start else 0
        stop = max(int(np.searchsorted(end_N, before + most, "right")), start + 1)
        yield _scores_of_batch(rows.slice(start, stop - start).combine_chunks(), scorer, schema)
        start = stop


def _scores_of_batch(rows: pa.Table, scorer: RowScorer, schema: pa.Schema) -> pa.Table:
    predicted = scorer(rows)
    ids = array_of(rows, "impression_id")
    row_R = pa.array(np.repeat(np.arange(len(ids)), np.diff(ids.offsets.to_numpy())))
    columns = {
        "impression_id": ids.flatten(),
        "context_id": array_of(rows, "context_id").take(row_R),
        "group_id": array_of(rows, "group_id").take(row_R),
    }
    if "timestamp" in schema.names:
        columns["timestamp"] = array_of(rows, "timestamp").flatten()
    for name, probability_R in predicted.items():
        # Above 1 is possible: of a quotient of two probabilities (training.model.graph).
        if len(probability_R) != len(row_R) or not ((probability_R >= 0) & np.isfinite(probability_R)).all():
            raise InputError(
                f"The model gives {name} a value that is no probability (NaN, negative or infinite); score with another "
                "checkpoint=…."
            )
        columns[name] = pa.array(np.ascontiguousarray(probability_R, np.float32))
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
