"""A stand-in for an MLflow server: the requests that training.run.mlflow_server makes, answered and remembered."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_API = "/api/2.0/mlflow/"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


@dataclass
class Tracked:
    """What the server has been told."""

    uri: str = ""
    experiments: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    points: list[tuple[str, float, int]] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)
    artifact_uri: str = "mlflow-artifacts:/1/r1/artifacts"
    refuses: bool = False

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return (status, content)."""
        url = urlsplit(path)
        if self.refuses:
            return 500, {"message": "out of order"}
        if url.path.startswith(_ARTIFACTS):
            self.artifacts[url.path.removeprefix(_ARTIFACTS)] = body
            return 200, {}
        what, content = url.path.removeprefix(_API), json.loads(body or b"{}")
        if what == "experiments/get-by-name":
            name = parse_qs(url.query)["experiment_name"][0]
            if name not in self.experiments:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no experiment {name}"}
            return 200, {"experiment": {"experiment_id": self.experiments[name]}}
        if what == "experiments/create":
            self.experiments[content["name"]] = str(len(self.experiments) + 1)
            return 200, {"experiment_id": self.experiments[content["name"]]}
        if what == "runs/create":
            self.runs.append(content)
            return 200, {"run": {"info": {"run_id": f"r{len(self.runs)}"}}}
        if what == "runs/get":
            return 200, {"run": {"info": {"artifact_uri": self.artifact_uri}}}
        if what == "runs/update":
            self.statuses.append(content["status"])
            return 200, {}
        assert what == "runs/log-batch", what
        assert len(content.get("metrics", ())) <= 1000
        assert len(content.get("params", ())) <= 100
        for param in content.get("params", ()):
            assert self.params.setdefault(param["key"], param["value"]) == param["value"], "MLflow refuses a change"
        self.points += [(one["key"], one["value"], one["step"]) for one in content.get("metrics", ())]
        return 200, {}


@contextmanager
def mlflow_stub() -> Iterator[Tracked]:
    """Serve on a port of loopback for the length of the block."""
    tracked = Tracked()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            tracked.headers.append(dict(self.headers))
            status, content = tracked.answer(self.command, self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tracked.uri = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield tracked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
