"""The reference server, as jobs.export copies it: answers, and one clear error for each bad request while it goes on."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sockets import listeners_of
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

from training.distributed.world import join
from training.export.folder import export_run
from training.export.settings import ExportSettings
from training.run.trainer import Trainer

MOST_CANDIDATES, MOST_BYTES = 50, 20_000


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    write_tiny_dataset(root / "data", num_contexts=40, numeric=True)
    settings = tiny_settings(root / "data", root / "run")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    list(
        export_run(
            ExportSettings(run=str(root / "run"), out=str(root / "export"), formats=["pt2"], check_impressions=0)
        )
    )
    return root / "export"


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[tuple[int, int]]:
    """The port and the pid of a server that runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = {"MOST_CANDIDATES": str(MOST_CANDIDATES), "MOST_BYTES": str(MOST_BYTES), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen([sys.executable, "server.py", "--port", str(port)], cwd=export, env=limits)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                ask(port, "GET", "/health")
                break
            except ConnectionError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield port, process.pid
        assert process.poll() is None, "the server did not outlive the requests"
    finally:
        process.terminate()
        process.wait(20)


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def request_of(export: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((export / "example_request.json").read_text())
    return found


def test_the_example_gets_its_answer_and_the_schema_is_served(export: Path, server: tuple[int, int]) -> None:
    status, found = ask(server[0], "POST", "/score", (export / "example_request.json").read_bytes())
    assert status == 200
    for name, values in json.loads((export / "example_answer.json").read_text()).items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)
    assert ask(server[0], "GET", "/schema") == (200, json.loads((export / "schema.json").read_text()))
    assert ask(server[0], "GET", "/health")[1]["runtime"] == "pt2"


def test_nothing_listens_beyond_loopback(server: tuple[int, int]) -> None:
    found = [one for one in listeners_of(server[1]) if one.port == server[0]]
    assert found
    assert all(one.is_loopback for one in listeners_of(server[1]))


BAD = [
    (b"not json", 400, "the request is not JSON"),
    (b"\xff", 400, "the request is not JSON"),
    (b"[]", 400, "not an object with the keys context and candidates"),
    (b'{"context": {}}', 400, "not an object with the keys context and candidates"),
    (b'{"context": {}, "candidates": [{}], "more": 1}', 400, "not an object with the keys"),
    (b'{"context": {}, "candidates": []}', 400, "candidates must be a list of one or more"),
    (b'{"context": {}, "candidates": {}}', 400, "candidates must be a list of one or more"),
    (b'{"context": {}, "candidates": [[]]}', 400, "a candidate is an object of fields, not list"),
    (b'{"context": null, "candidates": [{}]}', 400, "a context is an object of fields, not NoneType"),
    (b'{"context": {"item_id": 7}, "candidates": [{}]}', 400, "item_id is no field of a context"),
    (b'{"context": {}, "candidates": [{"item_idd": 7}]}', 400, "item_idd is no field of a candidate"),
    (b'{"context": {}, "candidates": [{"item_id": 7.5}]}', 400, "item_id: 7.5 is no id"),
    (b'{"context": {}, "candidates": [{"item_id": "x"}]}', 400, "item_id: 'x' is neither a whole number"),
    (b'{"context": {"user_spend": NaN}, "candidates": [{}]}', 400, "the request is not JSON"),
    (b'{"context": {"user_spend": 1e60}, "candidates": [{}]}', 400, "user_spend has a number that is not finite in float32"),
    (b'{"context": {"user_brands": [1010]}, "candidates": [{}]}', 400, "user_brands__weight must have one weight for each"),
    (json.dumps({"context": {}, "candidates": [{}] * (MOST_CANDIDATES + 1)}).encode(), 413, "51 candidates are more than 50"),
    (b'{"context": {}, "candidates": [{"item_id": "' + b"9" * MOST_BYTES + b'"}]}', 413, "more than 20000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "sentence"), BAD, ids=[sentence[:30] for *_, sentence in BAD])
def test_a_bad_request_is_one_clear_error_and_the_server_goes_on(
    export: Path, server: tuple[int, int], body: bytes, status: int, sentence: str
) -> None:
    found, answer = ask(server[0], "POST", "/score", body)
    assert (found, list(answer)) == (status, ["error"])
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert ask(server[0], "POST", "/score", (export / "example_request.json").read_bytes())[0] == 200
