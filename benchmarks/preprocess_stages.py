"""Where preprocessing spends its CPU seconds: python -m benchmarks.preprocess prints the table.

The job's own functions run once more in this process, without Spark, each under a clock that stops while another of
them runs inside it. What the job spent under Spark beyond their sum is transport: Arrow between JVM and Python, the
JVM's shuffle and sort, the planning of stages, the start of tasks.
"""

import gc
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from pipeline import preprocess
from pipeline.aliccp import parse, reader
from pipeline.audit.statistics import Statistics
from pipeline.audit.tally import Tally
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.lookup_table import Lookup
from pipeline.features.vocabulary import Counter
from pipeline.passes import count, publish, quarantine, write
from pipeline.spark import running, session
from pipeline.spark.hashes import murmur3_of_int
from pipeline.storage.parquet_files import PartWriter

#: (stage, where the job finds the function, its name); a generator is timed while it is asked for its next value.
_STAGES: list[tuple[str, Any, str]] = [
    ("read", reader, "read_chunks"),
    ("parse", parse, "parse"),
    ("split of each line", reader, "splits_of"),
    ("tally of lines", Tally, "count_chunk"),
    ("count ids", Counter, "add"),
    ("merge counts", Counter, "add_pairs"),
    ("look ids up", Lookup, "indices_of"),
    ("encode records", write, "encode"),
    ("cut at groups", write, "whole_groups"),
    ("select rows", write, "select"),
    ("gather columns", write, "rows_of"),
    ("audit statistics", Statistics, "add"),
    ("audit report", Statistics, "report"),
    ("write Parquet", PartWriter, "add"),
    ("write Parquet", PartWriter, "finish"),
    ("quarantine", write, "write_quarantine"),
    ("quarantine", quarantine, "write_quarantine"),
    ("audit: leakage, a sample of fixed size", publish, "leakage"),
    ("audit: page", publish, "audit_page"),
    ("vocabularies", count, "vocabularies"),
    ("lookup tables", write, "lookup_of"),
    ("vocabulary files", publish, "write_vocabulary"),
]
_SHUFFLE = "Spark's part"


class Clock:
    """CPU seconds by stage; of nested stages only the inner one runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = ["the rest: planning, glue, commit"]
        self._since = time.thread_time()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the time of the block to a stage."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def stop(self) -> None:
        """End the last stage."""
        self._switch()

    def _switch(self) -> None:
        now = time.thread_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `function` so that its time is charged to `name`."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                result = function(*arguments, **named)
            return self._each(name, result) if isinstance(result, Iterator) else result

        return call

    def _each(self, name: str, results: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.stage(name):
                try:
                    result = next(results)
                except StopIteration:
                    return
            yield result


class Frame:
    """The methods of a DataFrame that the chain uses, on partitions in memory."""

    def __init__(self, partitions: Iterable[Iterable[pa.RecordBatch]], clock: Clock) -> None:
        self.partitions = [list(partition) for partition in partitions]
        self._clock = clock

    def mapInArrow(self, function: Callable[..., Any], schema: str) -> "Frame":
        """Apply `function` to each partition."""
        return Frame((function(iter(partition)) for partition in self.partitions), self._clock)

    def repartition(self, count: int, column: str) -> "Frame":
        """Partition by Spark's hash of an int column."""
        with self._clock.stage(_SHUFFLE):
            table = self.table()
            part_R = np.array([murmur3_of_int(value) % count for value in table[column].to_pylist()])
            chosen = [table.filter(part_R == part) for part in range(count)]
            return Frame((part.to_batches() for part in chosen), self._clock)

    def sortWithinPartitions(self, *columns: str) -> "Frame":
        """Sort each partition by `columns`."""
        with self._clock.stage(_SHUFFLE):
            order = [(column, "ascending") for column in columns]
            # As long as Spark's batches: 8 MB of records of some 5 KB.
            parts = [Frame([part], self._clock).table() for part in self.partitions if part]
            parts = [part.sort_by(order).combine_chunks() for part in parts]
            return Frame((part.to_batches(max_chunksize=1600) for part in parts), self._clock)

    def table(self) -> pa.Table:
        """Concatenate all rows."""
        return pa.Table.from_batches([batch for partition in self.partitions for batch in partition])


def stages(settings: PreprocessSettings) -> dict[str, float]:
    """Run the job without Spark twice; return CPU seconds by stage of the second run. The first loads the kernels."""
    for _ in range(2):
        clock = Clock()
        spark = SimpleNamespace(version="none", sparkContext=SimpleNamespace(master="local[1]"))

        def numbers(_: Any, count: int, clock: Clock = clock) -> Frame:
            return Frame(([pa.RecordBatch.from_pydict({"id": [number]})] for number in range(count)), clock)

        stand_ins: list[tuple[Any, str, Any]] = [(session, "start_spark", lambda _, spark=spark: spark)]
        stand_ins += [(running, "number_partitions", numbers)]
        stand_ins += [(running, "collect", lambda frame, *_: frame.table())]
        stand_ins += [(owner, name, clock.timed(stage, getattr(owner, name))) for stage, owner, name in _STAGES]
        with tempfile.TemporaryDirectory(prefix="entirespace-stages-") as directory:
            patches = [mock.patch.object(owner, name, stand_in) for owner, name, stand_in in stand_ins]
            for patch in patches:
                patch.start()
            gc.collect()
            gc.freeze()
            preprocess.preprocess(replace(settings, out=str(Path(directory) / "dataset")))
            for patch in patches:
                patch.stop()
        clock.stop()
    return {name: seconds for name, seconds in clock.seconds.items() if name != _SHUFFLE}
