"""What tasks hand back to the driver: a JSON report of each file that they wrote."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

Batches = Iterator[pa.RecordBatch]

#: Rows of the second pass and of the last: a JSON object for each file written.
REPORT = "report binary"

REPORT_SCHEMA = pa.schema([("report", pa.binary())])


def report_row(report: dict[str, Any]) -> pa.RecordBatch:
    """Put a report into a row of REPORT_SCHEMA."""
    return pa.RecordBatch.from_arrays([pa.array([json.dumps(report).encode()], pa.binary())], schema=REPORT_SCHEMA)


def attempt_name() -> str:
    """A name that no other attempt of any task has."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return f"{context.taskAttemptId() if context else 0}-{os.getpid()}"
