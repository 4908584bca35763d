"""What a job tells those who operate it: its lines as JSON, and its figures for Prometheus. The environment asks for both.

    ENTIRESPACE_LOG=json        every line on stdout and stderr is an object: time, level, job, run_id, stage, …
    ENTIRESPACE_METRICS=DIR     a file of DIR for the node exporter's textfile collector, replaced whole
    ENTIRESPACE_RUN_ID=NAME     of those lines; else one is drawn, and what the job starts has the same

They are no settings: nothing that a job writes besides depends on them, so nothing of them is saved.
"""

import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from pipeline.atomic_files import probe_room, write_whole
from pipeline.errors import InputError, TryAgainError, printable, reason_of
from pipeline.secrets import without_secrets

LOG_FORMAT, METRICS_FOLDER, RUN_ID = "ENTIRESPACE_LOG", "ENTIRESPACE_METRICS", "ENTIRESPACE_RUN_ID"
#: Figure → its type and its help, as Prometheus shows them; each name begins with entirespace_.
FIGURES = {
    "stage": ("gauge", "1 for the stage that the job is in."),
    "impressions_total": ("counter", "Impressions trained on, written, predicted or scored by this start of the job."),
    "impressions_per_second": ("gauge", "Impressions trained on a second, since the last entry of the log."),
    "waiting_share": ("gauge", "Share of the time that training waited for data, since the last entry of the log."),
    "step": ("gauge", "Steps of the run that are done."),
    "steps": ("gauge", "Steps that the run will have."),
    "loss": ("gauge", "Training loss, mean since the last entry of the log."),
    "checkpoint_timestamp_seconds": ("gauge", "When the newest complete checkpoint of this start was saved; its age is time() less this."),
    "quarantined_lines": ("gauge", "Lines of the raw log that are in quarantine."),
    "start_timestamp_seconds": ("gauge", "When the job started."),
    "update_timestamp_seconds": ("gauge", "When this file was written."),
    "exit_status": ("gauge", "Exit status of the job; absent while it runs, and after a kill."),
}  # fmt: skip
_EVERY_S = 5.0
_STAGE = re.compile(r"[a-z][a-z0-9_ ]*")


class _State:
    """What this process knows of its job."""

    def __init__(self) -> None:
        self.job, self.out, self.stage, self.rank = "", "", "start", 0
        self.figures: dict[str, float] = {}
        self.folder: Path | None = None
        self.written_s = -_EVERY_S
        self.has_warned = False
        self.has_reported = False


_state = _State()
_lock = threading.RLock()


def begin(job: str, rank: int = 0) -> None:
    """Read the environment, for a process of `job`; rank 0 writes the figures.

    Raises InputError for another format than json, and for a folder that cannot be written.
    """
    global _state
    _state = _State()
    _state.job, _state.rank = job, rank
    os.environ.setdefault(RUN_ID, uuid.uuid4().hex[:12])
    chosen = os.environ.get(LOG_FORMAT, "text")
    if chosen not in ("text", "json"):
        raise InputError(f"{LOG_FORMAT}={chosen} is not one of text, json.")
    if chosen == "json":
        for name in ("stdout", "stderr"):
            if not isinstance(getattr(sys, name), JsonLines):
                setattr(sys, name, JsonLines(getattr(sys, name), name))
    if (folder := os.environ.get(METRICS_FOLDER)) and rank == 0:
        try:
            probe_room(Path(folder))
        except OSError as error:
            raise InputError(
                f"{METRICS_FOLDER}={folder} cannot be written ({reason_of(error)}); make the folder that the node exporter's "
                "--collector.textfile.directory names, and give this user the right to write there."
            ) from error
        _state.folder = Path(folder)
        _state.figures["start_timestamp_seconds"] = time.time()


def is_about(out: str) -> None:
    """Name what the job works on: the label `out` of its figures."""
    _state.out = out


def enter_stage(name: str) -> None:
    """Say which stage the job is in from now on."""
    assert _STAGE.fullmatch(name), name
    _state.stage = name
    set_figures({}, force=True)


def set_figures(figures: Mapping[str, float], *, force: bool = False) -> None:
    """Set some of FIGURES; a counter is given its whole value. The file is written every few seconds, or by `force`."""
    if _state.folder is None:
        return
    _state.has_reported = True
    with _lock:
        for name, value in figures.items():
            assert name in FIGURES, name
            _state.figures[name] = float(value)
    _write_figures(force)


@contextmanager
def reported_end() -> Iterator[None]:
    """Report the exit status with which the block ends the process, if the job has reported anything."""
    status = 0
    try:
        yield
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    except BaseException as error:
        status = os.EX_TEMPFAIL if isinstance(error, TryAgainError) else 2 if isinstance(error, InputError) else 1
        raise
    finally:
        if _state.folder and _state.has_reported:
            set_figures({"exit_status": status}, force=True)


def metrics_text() -> str:
    """Return the figures in Prometheus' text format."""
    with _lock:
        figures = {**_state.figures, "update_timestamp_seconds": time.time()}
        labels = {"job_name": _state.job, "out": _state.out}
        lines = []
        for name, (kind, about) in FIGURES.items():
            if name == "stage":
                values = [(labels | {"stage": _state.stage}, 1.0)]
            elif name in figures:
                values = [(labels, figures[name])]
            else:
                continue
            lines += [f"# HELP entirespace_{name} {about}", f"# TYPE entirespace_{name} {kind}"]
            lines += [f"entirespace_{name}{{{_label_text(of)}}} {value!r}" for of, value in values]
        return "\n".join(lines) + "\n"


def metrics_file() -> Path | None:
    """Return the file of the figures: one for each job and place, so that a job's next start replaces it."""
    if _state.folder is None:
        return None
    return _state.folder / f"entirespace-{_state.job}-{xxhash.xxh3_64_hexdigest(_state.out.encode())[:8]}.prom"


class JsonLines:
    """A text stream that writes each line as a JSON object of one line."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name, self._begun = stream, name, ""
        self._in_traceback = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        """Take some text; its whole lines are written."""
        with _lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self._write_line(line)
        return len(text)

    def flush(self) -> None:
        """Flush the lines that are whole."""
        self._stream.flush()

    def _write_line(self, line: str) -> None:
        message = without_secrets(line.rpartition("\r")[2]).strip()
        if not message:
            return
        # A traceback ends with the line of the exception, the first that is not indented.
        is_traceback = self._in_traceback or message.startswith("Traceback (")
        self._in_traceback = is_traceback and (line.startswith(" ") or message.startswith("Traceback ("))
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1_000_000 % 1000:03d}Z",
            "level": "error" if is_traceback else _level_of(message),
            "job": _state.job,
            "run_id": os.environ.get(RUN_ID, ""),
            "stage": _state.stage,
            "rank": _state.rank,
            "host": socket.gethostname(),
            "stream": self._name,
            "message": message,
        }
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _level_of(message: str) -> str:
    if message.startswith(("error:", "stopped by")):
        return "error"
    return "warning" if message.startswith(("warning:", "ALERT ")) else "info"


def _label_text(values: Mapping[str, str]) -> str:
    def quoted(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return ",".join(f'{name}="{quoted(value)}"' for name, value in values.items())


def _write_figures(force: bool) -> None:
    """Replace the file. A full disk there costs a warning, and no job."""
    now_s = time.monotonic()
    path = metrics_file()
    if path is None or (not force and now_s - _state.written_s < _EVERY_S):
        return
    with _lock:
        _state.written_s = now_s
        try:
            write_whole(path, metrics_text(), partial=path.with_name(f".{path.name}.{os.getpid()}"), mode=0o644)
        except OSError as error:
            if not _state.has_warned:
                _state.has_warned = True
                print(
                    f"warning: {printable(str(path))} cannot be written ({reason_of(error)}).",
                    file=sys.stderr,
                    flush=True,
                )
