"""The cost of the audit, beside that of the steps it audits: python -m benchmarks.audit data=DATASET.

The tallies of the writing tasks against the writing of the same rows to Parquet, which is only a part of the write; and
the leakage check, whose cost does not grow with the dataset.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.leakage import leakage
from pipeline.audit.statistics import Statistics
from pipeline.config.preprocess import AuditSettings
from pipeline.contexts.rows import ContextRows
from pipeline.dataset.arrow_columns import lengths
from pipeline.dataset.manifest import load_manifest
from pipeline.features.fields import Catalogue, Field
from pipeline.storage.parquet_files import PartWriter

_ROWS = 2500  # of a batch, as they come from Spark's sort
_ROUNDS = 3


def main(dataset: str) -> None:
    """Print both sides and their ratio: the lowest CPU seconds of three rounds."""
    manifest = load_manifest(dataset)
    fields = tuple(
        Field(
            field.name,
            field.raw_id,
            field.scope,
            field.arity,
            field.weighted,
            1,
            kind=field.kind,
            parameters=field.parameters,
        )
        for field in manifest.fields
    )
    catalogue = Catalogue(fields, "")
    file = manifest.files_of("train")[0]
    table = pq.read_table(f"{dataset}/{file.path}", use_threads=False)
    batches = [_rows(table.slice(start, _ROWS).combine_chunks()) for start in range(0, len(table), _ROWS)]
    impressions = sum(int(batch.counts[:, 0].sum()) for batch in batches)

    def tally() -> None:
        statistics = Statistics()
        for batch in batches:
            statistics.add(batch.table, catalogue, batch.key_N, batch.counts)

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = PartWriter(Path(folder) / "part", table.schema, 16384, False)
            for batch in batches:
                writer.add(batch.table, batch.counts)
            writer.finish()

    def check() -> None:
        leakage(dataset, manifest.files, fields, AuditSettings())

    tally_s, write_s, check_s = (_least_cpu_s(work) for work in (tally, write, check))
    print(f"{impressions:,} impressions of {file.path}; CPU, one thread")
    print(f"tallies         {tally_s / impressions * 1e6:7.3f} us an impression")
    print(f"Parquet         {write_s / impressions * 1e6:7.3f} us an impression")
    print(f"tallies/Parquet {tally_s / write_s:7.1%}")
    print(f"leakage check   {check_s:7.2f} s, whatever the size")


def _rows(table: pa.Table) -> ContextRows:
    key_N = np.array([int(key, 16) for key in table.column("context_id").to_pylist()], np.uint64).view(np.int64)
    counts = np.zeros((len(table), 4), np.int64)
    counts[:, 0] = lengths(table, "click")
    return ContextRows(table, key_N, counts)


def _least_cpu_s(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].startswith("data="):
        sys.exit("usage: python -m benchmarks.audit data=DATASET")
    main(sys.argv[1].removeprefix("data="))
