"""The few requests of MLflow's REST API that a run needs, by the standard library: nothing is installed or imported for them.

A user name and a password, or a token, come from the environment by MLflow's own names (MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN), and are saved nowhere.
"""

import base64
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from pipeline.locations import open_location

_TIMEOUT_S = 10.0
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one request
_MOST_PARAM_LETTERS = 500  # of the value of a parameter, which older servers refuse beyond
_PROXIED = "mlflow-artifacts:"
_UPLOAD_BYTES = 4 << 20


class ServerError(OSError):
    """The server does not answer, or refuses a request."""


class MlflowServer:
    """A tracking server. Every method raises ServerError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        host = urlsplit(self.uri).hostname or ""
        # A proxy of the environment knows no other host's loopback.
        is_here = host in ("localhost", "::1") or host.startswith("127.")
        self._opener = build_opener(ProxyHandler({})) if is_here else build_opener()

    def experiment(self, name: str) -> str:
        """Return the id of the experiment `name`, which is made where there is none."""
        try:
            found = self._call("GET", "experiments/get-by-name", {"experiment_name": name})
            return str(found["experiment"]["experiment_id"])
        except ServerError as error:
            if not isinstance(error.__cause__, HTTPError) or error.__cause__.code != 404:
                raise
        return str(self._call("POST", "experiments/create", {"name": name})["experiment_id"])

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Make a run, and return its id."""
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        body = {"experiment_id": experiment_id, "run_name": name, "start_time": _now_ms(), "tags": listed}
        return str(self._call("POST", "runs/create", body)["run"]["info"]["run_id"])

    def set_status(self, run_id: str, status: str) -> None:
        """Set RUNNING, FINISHED or KILLED."""
        end = {} if status == "RUNNING" else {"end_time": _now_ms()}
        self._call("POST", "runs/update", {"run_id": run_id, "status": status, **end})

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Save parameters; the end of a long value is cut off."""
        listed = [{"key": key, "value": value[:_MOST_PARAM_LETTERS]} for key, value in params.items()]
        for start in range(0, len(listed), _MOST_PARAMS):
            self._call("POST", "runs/log-batch", {"run_id": run_id, "params": listed[start : start + _MOST_PARAMS]})

    def log_metrics(self, run_id: str, points: Sequence[tuple[str, float, int]]) -> None:
        """Save points (name, value, step)."""
        now_ms = _now_ms()
        listed = [{"key": key, "value": value, "timestamp": now_ms, "step": step} for key, value, step in points]
        for start in range(0, len(listed), _MOST_METRICS):
            self._call("POST", "runs/log-batch", {"run_id": run_id, "metrics": listed[start : start + _MOST_METRICS]})

    def log_artifact(self, run_id: str, path: Path, name: str) -> None:
        """Upload a file under `name`: through the server where that stores artifacts, else to its address."""
        place = str(self._call("GET", "runs/get", {"run_id": run_id})["run"]["info"]["artifact_uri"]).rstrip("/")
        if place.startswith(_PROXIED):
            inner = quote(f"{urlsplit(place).path.strip('/')}/{name}")
            url = f"{self.uri}/api/2.0/mlflow-artifacts/artifacts/{inner}"
            with path.open("rb") as stream:
                headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
                self._send(Request(url, data=stream, headers=headers, method="PUT"))
            return
        filesystem, root = open_location(place)
        target = f"{root.rstrip('/')}/{name}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        with path.open("rb") as source, filesystem.open_output_stream(target) as sink:
            while block := source.read(_UPLOAD_BYTES):
                sink.write(block)

    def _call(self, method: str, what: str, content: Mapping[str, Any]) -> Any:
        url = f"{self.uri}/api/2.0/mlflow/{what}"
        if method == "GET":
            return json.loads(self._send(Request(f"{url}?{urlencode(content)}")) or "{}")
        body = json.dumps(content).encode()
        request = Request(url, data=body, headers={"Content-Type": "application/json"}, method=method)
        return json.loads(self._send(request) or "{}")

    def _send(self, request: Request) -> bytes:
        for name, value in _credentials().items():
            request.add_header(name, value)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                content: bytes = answer.read()
                return content
        except HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            raise ServerError(f"status {error.code}: {_message_in(said)}") from error
        except (URLError, OSError, ValueError) as error:
            raise ServerError(str(getattr(error, "reason", error))) from error


def _credentials() -> dict[str, str]:
    """Return the header that the environment asks for."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, word = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and word:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{word}'.encode()).decode()}"}
    return {}


def _message_in(text: str) -> str:
    try:
        return str(json.loads(text)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return text[:300]


def _now_ms() -> int:
    return int(time.time() * 1000)
