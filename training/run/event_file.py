"""TensorBoard's event files, written in the calling thread.

torch's SummaryWriter writes in a thread of its own: on a full disk that thread prints a traceback, and a kill loses what it
had not yet written, even where a checkpoint of a later step is complete.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """One file of scalars. Every method may raise OSError."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        """Open a new file in `folder`; its first record drops the points after `steps_done` of the files before it."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names: two starts within a second need finer time.
        path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter(path.open("xb"))
        self._write(Event(file_version="brain.Event:2"))
        if steps_done:
            self._write(Event(step=steps_done + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the points of one step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()
