"""An S3 on loopback (moto), and a proxy before it that answers as stores do on a bad day.

    with FaultyS3() as s3:               s3.environment leads to the proxy; s3.client is boto3's, which leads around it
        s3.faults = every(3, "503")      the third, sixth, … request ends so

`faults` is called with each request, and names what becomes of it:

    500, 503        refused, and not done
    lost            done, and answered by 500
    cut             answered by half of the body, and a closed connection
    slow            answered after a second and a half, in two pieces
    412             refused as a condition that does not hold
"""

import http.client
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "entirespace"
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


class Request(NamedTuple):
    """What the proxy knows of a request before it decides."""

    method: str
    path: str


Faults = Callable[[Request], str | None]


def none(request: Request) -> None:
    """Let every request pass."""


def every(number: int, *kinds: str, methods: str = "GET PUT HEAD POST DELETE") -> Faults:
    """Disturb each `number`-th request of some methods, by each of `kinds` in turn."""
    count, kind = itertools.count(1), itertools.cycle(kinds)
    return lambda request: next(kind) if request.method in methods and next(count) % number == 0 else None


def at_random(seed: int, share: float, *kinds: str) -> Faults:
    """Disturb a share of the requests."""
    draw = random.Random(seed)
    return lambda request: draw.choice(kinds) if draw.random() < share else None


class FaultyS3:
    """The store and its proxy while the context lasts."""

    def __init__(self, key: str = "test", secret: str = "test") -> None:
        self.faults: Faults = none
        self.seen: Counter[str] = Counter()
        self.log: list[Request] = []
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._key, self._secret = key, secret

    def __enter__(self) -> "FaultyS3":
        self._moto.start()
        host, port = self._moto.get_host_and_port()
        self._behind = (host, int(port))
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id=self._key,
            aws_secret_access_key=self._secret,
        )
        self.client.create_bucket(Bucket=BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a process here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_address[1]}",
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def clear(self) -> None:
        """Empty the bucket."""
        for name in self.names(""):
            self.client.delete_object(Bucket=BUCKET, Key=name)

    def names(self, prefix: str) -> list[str]:
        """List the objects below a prefix, by their whole keys."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return [name for name in found if not name.endswith("/")]

    def content(self, name: str) -> bytes:
        """Read an object."""
        return bytes(self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read())

    def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def upload(self, directory: Any, prefix: str) -> str:
        """Upload a directory; return its address."""
        for path in directory.rglob("*"):
            if path.is_file() and path.name != ".lock":  # of this process, which may still be there
                self.put(f"{prefix}/{path.relative_to(directory).as_posix()}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def pass_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, list[Any], bytes]:
        """Ask the real store."""
        connection = http.client.HTTPConnection(*self._behind, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def _handler_of(store: FaultyS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self) -> None:
            body = self._body()
            request = Request(self.command, self.path)
            store.log.append(request)
            fault = store.faults(request)
            if fault:
                store.seen[fault] += 1
            if fault in ("500", "503", "412"):
                self._refuse(int(fault))
                return
            status, headers, content = store.pass_on(self.command, self.path, dict(self.headers), body)
            if fault == "lost":
                self._refuse(500)
                return
            if fault == "slow":
                time.sleep(1.0)
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.wfile.flush()
            if fault == "cut":
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if fault == "slow":
                time.sleep(0.5)
            self.wfile.write(content[half:])

        def _refuse(self, status: int) -> None:
            code = {500: "InternalError", 503: "SlowDown", 412: "PreconditionFailed"}[status]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as planted</Message></Error>".encode()
            if self.command == "HEAD":
                text = b""
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    return Handler


def lead_to(store: FaultyS3, monkeypatch: Any) -> None:
    """Let this process find the store."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
