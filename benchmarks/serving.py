"""Latency of one request: 23 fields of Ali-CCP's shape, raw texts in, four probabilities for each of 500 candidates out.

    python -m benchmarks.serving                       # training.load, the exported graph, the reference server
    python -m benchmarks.serving requests=1000 hidden=512,256,128,32 compile=no server=no

One core and one thread (OMP_NUM_THREADS=1), random weights, tables of 3.2 million rows, a graph of ESM² with four towers
of 200 and 80 units. Times are printed twice: as the clock has them, and as CPU time of the thread, which other processes
on the machine change less. The server runs in a process of its own, and its clients in threads of this one.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import training
from benchmarks.serving_run import draw_request, own_memory_mb, write_run
from training.export.check import exported_model
from training.export.folder import export_run
from training.export.settings import ExportSettings

NUM_CANDIDATES, NUM_REQUESTS_DRAWN = 500, 20


def percentiles(times_s: Sequence[float]) -> str:
    """Format milliseconds."""
    return " ".join(f"p{q} {np.percentile(times_s, q) * 1e3:.2f}" for q in (50, 90, 99))


def measure(what: str, ask: Callable[[dict[str, Any]], Any], requests: list[dict[str, Any]], count: int) -> None:
    for request in requests:
        ask(request)
    clock_s, cpu_s = [], []
    for number in range(count):
        request = requests[number % len(requests)]
        start, start_cpu = time.perf_counter(), time.thread_time()
        ask(request)
        cpu_s.append(time.thread_time() - start_cpu)
        clock_s.append(time.perf_counter() - start)
    print(f"{what:34s} ms: {percentiles(clock_s)}   CPU ms: {percentiles(cpu_s)}   n={count}", flush=True)


def measure_server(folder: Path, requests: list[dict[str, Any]], seconds: float, clients: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "server.py", "--port", str(port)], cwd=folder)
    bodies = [json.dumps(request).encode() for request in requests]
    try:
        wait_for(port)
        end = time.monotonic() + seconds
        times_s: list[list[float]] = [[] for _ in range(clients)]

        def client(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            place = number
            while time.monotonic() < end:
                start = time.perf_counter()
                connection.request("POST", "/score", bodies[place % len(bodies)])
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
                times_s[number].append(time.perf_counter() - start)
                place += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent_s = time.monotonic() - start
        every = [one for of_client in times_s for one in of_client]
        memory_mb = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        print(
            f"server, {clients} clients: {len(every) / spent_s:.0f} requests/s ({NUM_CANDIDATES} candidates each), ms: "
            f"{percentiles(every)}, {memory_mb:.0f} MB resident in its worker, body {len(bodies[0]) / 1e3:.0f} kB",
            flush=True,
        )
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/health")
            return
        except ConnectionError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    count, hidden = int(given.get("requests", 300)), given.get("hidden", "200,80")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        write_run(run, "model=esm2", f"model.towers.hidden=[{hidden}]", "model.towers.dropout=0.0")
        random = np.random.default_rng(2)
        requests = [draw_request(random, NUM_CANDIDATES) for _ in range(NUM_REQUESTS_DRAWN)]
        values = np.mean(
            [
                sum(
                    len(ids) if isinstance(ids, list) else 1
                    for ids in (value for name, value in one["context"].items() if not name.endswith("__weight"))
                )
                for one in requests
            ]
        )
        print(
            f"{NUM_CANDIDATES} candidates, {values:.0f} values in a context, towers {hidden}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        before = own_memory_mb()
        scorer = training.load(run)
        print(f"training.load: {own_memory_mb() - before:.0f} MB for tables and vocabularies")
        measure(
            "training.load: predict",
            lambda request: scorer.predict(request["context"], request["candidates"]),
            requests,
            count,
        )
        assert scorer.requests is not None
        encode = scorer.requests.encode
        measure(
            "  of it raw values → rows",
            lambda request: encode([request["context"]], [request["candidates"]]),
            requests,
            count,
        )
        formats = ["pt2"] if given.get("compile") == "no" else ["pt2", "aoti"]
        out = Path(scratch) / "export"
        for line in export_run(ExportSettings(run=str(run), out=str(out), formats=formats, check_impressions=0)):
            print(line)
        for runtime in formats:
            model = exported_model(out, runtime)
            measure(
                f"export, {runtime}: predict", lambda request, model=model: model.predict(**request), requests, count
            )
        if given.get("server") != "no":
            for clients in (1, 4):
                measure_server(out, requests, float(given.get("seconds", 10)), clients)


if __name__ == "__main__":
    main()
