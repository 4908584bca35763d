"""A reference server: POST /score with one context and its candidates. An example to read, not a product.

pip install fastapi uvicorn orjson numpy torch
python server.py --port 8000 --workers 2          # on 127.0.0.1, unless --host says otherwise
curl -s http://127.0.0.1:8000/score -d @example_request.json

request    {"context": {field: value, …}, "candidates": [{field: value, …}, …]}
answer     {"p_ctr": […], "p_cvr": […], …}: a number for each candidate, in their order
error      {"error": "…"} with status 400 (the request), 413 (too large); the server goes on
"""

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from scoring import ExportedModel, RequestError  # type: ignore[import-not-found]

MOST_CANDIDATES = int(os.environ.get("MOST_CANDIDATES", "2000"))
MOST_BYTES = int(os.environ.get("MOST_BYTES", str(16 << 20)))

# Each worker holds the model once and computes on one thread: start as many workers as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
model = ExportedModel(Path(__file__).parent)
app = FastAPI(title="conversion model", docs_url=None, redoc_url=None)
gc.freeze()  # or each full collection scans the 700,000 objects of torch, while requests wait


def answer(status: int, content: Any) -> Response:
    """Return JSON."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


@app.get("/health")
async def health() -> Response:
    """Say that the model is loaded."""
    return answer(200, {"status": "ok", "runtime": model.runtime, "source": model.schema["source"]})


@app.get("/schema")
async def schema() -> Response:
    """Return schema.json: the fields that a request may have."""
    return answer(200, model.schema)


async def read_body(request: Request) -> bytes | None:
    """Read the request; None if it is larger than MOST_BYTES."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


@app.post("/score")
async def score(request: Request) -> Response:
    """Score the candidates of one context. The work takes milliseconds, so it is done where it arrives."""
    text = await read_body(request)
    if text is None:
        return answer(413, {"error": f"the request has more than {MOST_BYTES} bytes; send fewer candidates"})
    try:
        body = orjson.loads(text)  # refuses NaN, Infinity and what is no UTF-8
    except orjson.JSONDecodeError as error:
        return answer(400, {"error": f"the request is not JSON: {error}"})
    if not isinstance(body, dict) or body.keys() != {"context", "candidates"}:
        return answer(400, {"error": "the request is not an object with the keys context and candidates"})
    if isinstance(body["candidates"], list) and len(body["candidates"]) > MOST_CANDIDATES:
        return answer(
            413, {"error": f"{len(body['candidates'])} candidates are more than {MOST_CANDIDATES}; send fewer"}
        )
    try:
        return answer(200, model.predict(body["context"], body["candidates"]))
    except RequestError as error:
        return answer(400, {"error": str(error)})


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Score requests over HTTP.")
    options.add_argument(
        "--host", default="127.0.0.1", help="whoever reaches this address may ask (default: this host alone)"
    )
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--workers", type=int, default=1, help="processes, each with the model")
    chosen = options.parse_args()
    uvicorn.run("server:app", host=chosen.host, port=chosen.port, workers=chosen.workers, log_level="warning")
