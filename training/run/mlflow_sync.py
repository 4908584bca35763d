"""A run on an MLflow server: settings, log.jsonl, evaluations and files, uploaded from what the run has on its disk.

log.jsonl is the truth, and the server follows it. So an upload may be cut off, or the server be away for hours, and the
next one sends what is missing: the one at the end of training, jobs.track, or that of a resumed run. RUN/mlflow.json says
how far the server is.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.atomic_files import write_whole, xxh3_of
from pipeline.errors import InputError, printable, with_addresses, writing
from pipeline.secrets import redacted, without_secrets
from training.run.mlflow_server import MlflowServer
from training.run.run_folder import load_settings

SYNC_STATE = "mlflow.json"
RUNNING, FINISHED, KILLED = "RUNNING", "FINISHED", "KILLED"
_UPLOAD_EVERY_S = 10.0
_LAST_UPLOAD_S = 60.0  # of a run that ends, for what is being uploaded


@dataclass(frozen=True)
class SyncState:
    """RUN/mlflow.json: the run on the server, and how much of this one it has."""

    uri: str
    experiment: str
    run_id: str = ""
    has_params: bool = False
    train_step: int = 0  # of the last entry of training
    validation_step: int = 0
    files: Mapping[str, str] = field(default_factory=dict)  # artifact → xxh3


def sync_run(run: Path, uri: str, experiment: str, status: str = "", export: Path | None = None) -> SyncState:
    """Upload what the server lacks of `run`, and set its `status`; `export` is a folder of jobs.export.

    Raises ServerError where the server does not answer; what was uploaded by then is noted. Raises InputError without a run.
    """
    params = params_of(asdict(load_settings(run)))
    server, state = MlflowServer(uri), _read_state(run, uri, experiment)
    if not state.run_id:
        run_id = server.create_run(
            server.experiment(experiment), run.resolve().name, {"entirespace.run": with_addresses(str(run.resolve()))}
        )
        state = _saved(run, replace(state, run_id=run_id))
    elif status == RUNNING:
        server.set_status(state.run_id, RUNNING)
    if not state.has_params:
        server.log_params(state.run_id, params)
        state = _saved(run, replace(state, has_params=True))
    points, steps = _new_points(run, state)
    if points:
        server.log_metrics(state.run_id, points)
        state = _saved(run, replace(state, train_step=steps[0], validation_step=steps[1]))
    for name, path in _artifacts_of(run, export):
        with path.open("rb") as stream:
            digest = xxh3_of(stream)
        if state.files.get(name) == digest:
            continue
        server.log_artifact(state.run_id, path, name)
        if path.name.startswith("metrics") and path.suffix == ".json":
            server.log_metrics(state.run_id, _figures_in(path, name))
        state = _saved(run, replace(state, files={**state.files, name: digest}))
    if status not in ("", RUNNING):
        server.set_status(state.run_id, status)
    return state


class BackgroundSync:
    """Uploads a run while it trains, in a thread of its own. A server that is away costs one warning, and no step."""

    def __init__(self, run: Path, uri: str, experiment: str) -> None:
        self._arguments = (run, uri, experiment)
        self._has_warned = False
        self._ended = threading.Event()
        self._status = FINISHED
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()

    def close(self, is_finished: bool) -> None:
        """Upload the rest, for at most a minute."""
        self._status = FINISHED if is_finished else KILLED
        self._ended.set()
        self._thread.join(_LAST_UPLOAD_S)
        if self._thread.is_alive():
            self._warn("it is slow")

    def _follow(self) -> None:
        self._upload(RUNNING)
        while not self._ended.wait(_UPLOAD_EVERY_S):
            self._upload("")
        self._upload(self._status)

    def _upload(self, status: str) -> None:
        try:
            sync_run(*self._arguments, status=status)
        except (OSError, InputError) as error:
            self._warn(str(error))

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            run, uri, _ = self._arguments
            print(
                f"warning: log.mlflow={without_secrets(uri)} lacks entries of this run ({printable(without_secrets(why))}); "
                f"training goes on. What is missing is uploaded by: python -m jobs.track run={run} uri={without_secrets(uri)}",
                file=sys.stderr,
                flush=True,
            )


def params_of(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten settings to dotted names; a secret's value is ***."""
    found: dict[str, str] = {}
    for key, value in redacted(settings).items():
        if isinstance(value, Mapping) and value:
            found |= params_of(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list | dict) else str(value)
    return found


def _new_points(run: Path, state: SyncState) -> tuple[list[tuple[str, float, int]], tuple[int, int]]:
    """Return the points of log.jsonl behind those that the server has, and the steps of the last ones.

    A resumed run takes some steps again, to the same values: the server has these.
    """
    points: list[tuple[str, float, int]] = []
    train_step, validation_step = state.train_step, state.validation_step
    for entry in _entries(run / "log.jsonl"):
        step = entry["step"]
        is_validation = any(name.startswith("validation_") for name in entry)
        if step <= (state.validation_step if is_validation else state.train_step):
            continue
        left_out = ("step", "epoch") if is_validation else ("step",)  # the entry of training has its epoch
        train_step, validation_step = (train_step, step) if is_validation else (step, validation_step)
        points += [
            (name, float(value), step)
            for name, value in entry.items()
            if name not in left_out and type(value) in (int, float)
        ]
    return points, (train_step, validation_step)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole entries; the last line may be half-written by now."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and type(entry.get("step")) is int:
                yield entry


def _artifacts_of(run: Path, export: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield (name of the artifact, file): figures and reports of every evaluation, and the files of an export.

    config.yaml is none of them: it has the settings as they were given.
    """
    found = [*run.glob("metrics*.json"), *run.glob("*.html")]
    found += [*run.glob("evaluations/*/metrics.json"), *run.glob("evaluations/*/*.html")]
    for path in sorted(found):
        yield path.relative_to(run).as_posix(), path
    if export is not None:
        for path in sorted(path for path in export.rglob("*") if path.is_file()):
            yield f"export/{path.relative_to(export).as_posix()}", path


def _figures_in(path: Path, name: str) -> list[tuple[str, float, int]]:
    """Return the figures of a metrics.json as points, called by their split, or by the name of their evaluation."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "metrics.json" and "/" not in name:
        return []  # a copy of the latest metrics.<split>.json
    label = name.split("/")[1] if "/" in name else str(figures.get("split", "evaluation"))
    step = figures.get("provenance", {}).get("step", 0)
    return [(f"{label}/{key}", float(value), step) for key, value in figures.items() if type(value) in (int, float)]


def _read_state(run: Path, uri: str, experiment: str) -> SyncState:
    """Read RUN/mlflow.json; a new state where it is of another server or experiment, or damaged."""
    try:
        found = SyncState(**json.loads((run / SYNC_STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return SyncState(uri, experiment)
    return found if (found.uri, found.experiment) == (uri, experiment) else SyncState(uri, experiment)


def _saved(run: Path, state: SyncState) -> SyncState:
    with writing(f"run={run}", "copy the run to another place"):
        write_whole(run / SYNC_STATE, json.dumps(asdict(state), indent=1) + "\n")
    return state
