"""The commit of a dataset: one job at a time, files by content, the manifest last, the earlier generation whole until then.

lock ─▶ stage in _staging/<run>/ ─▶ rename to content names ─▶ audit.json, run.json ─▶ manifest.json ─▶ sweep
"""

import fcntl
import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.manifest import MANIFEST, SPLITS, InputError, Manifest

AUDIT, RUN, LOCK, STAGING = "audit.json", "run.json", "_lock", "_staging"
VOCABULARY, QUARANTINE = "vocabulary", "quarantine"
# Only names of our own making are ever swept: the directory may hold a user's files too.
_OURS = re.compile(r"[a-z0-9_]+-(?:\d{5}-)?[0-9a-f]{16}\.parquet\Z")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a dataset; InputError where another job has it, a message where a dead one left it."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(_refusal(out, _holder(path))) from None
        # The file may have been removed by its last holder between our open and our lock: then lock the new one.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)
    holder = _holder(path)
    if holder and holder.get("host") != socket.gethostname():
        os.close(descriptor)
        raise InputError(f"{_refusal(out, holder)} If that job is gone, remove {path}.")
    if holder:
        print(
            f"taking over {path}: process {holder.get('pid')} ended without releasing it", file=sys.stderr, flush=True
        )
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(mine).encode(), 0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text() or "{}")
        return holder if isinstance(holder, dict) else {}
    except (OSError, ValueError):
        return {}


def _refusal(out: Path, holder: Mapping[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('time')}" if holder else "another job"
    return f"out={out} is being written by {who}; wait for it or choose another out."


def existing_manifest(out: Path) -> Manifest | None:
    """The manifest of the finished dataset at `out`, if there is one."""
    path = out / MANIFEST
    return Manifest.from_json(path.read_bytes(), str(path)) if path.exists() else None


def new_staging(out: Path) -> Path:
    """A fresh directory for this run; what dead runs left is removed. Call it under the lock.

    The name is new each time: a worker that outlived its killed driver finds its directory gone and cannot disturb.
    """
    shutil.rmtree(out / STAGING, ignore_errors=True)
    staging = out / STAGING / uuid.uuid4().hex
    staging.mkdir(parents=True)
    return staging


def place(out: Path, staged: Mapping[str, Any], folder: str, stem: str) -> str:
    """Move a staged file to the name that its content gives it; the name, relative to `out`."""
    name = f"{folder}/{stem}-{staged['xxh3']}.parquet"
    (out / folder).mkdir(exist_ok=True)
    os.replace(staged["staged"], out / name)
    return name


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file at once."""
    _replace(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def publish(out: Path, manifest: Manifest) -> None:
    """The commit: from here on the dataset is the new one."""
    _replace(out / MANIFEST, manifest.to_json())


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"_{path.name}-{os.getpid()}")
    with fresh.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)


def sweep(out: Path, manifests: list[Manifest]) -> None:
    """Remove the staging directory and the data files that none of `manifests` names."""
    named = {path for manifest in manifests for path in files_named(manifest)}
    for folder in (*SPLITS, VOCABULARY, QUARANTINE):
        for path in (out / folder).glob("*.parquet"):
            if _OURS.match(path.name) and f"{folder}/{path.name}" not in named:
                path.unlink(missing_ok=True)
    shutil.rmtree(out / STAGING, ignore_errors=True)


def files_named(manifest: Manifest) -> list[str]:
    """Every file that belongs to a dataset, relative to it."""
    files = [file.path for file in manifest.files] + [field.vocabulary for field in manifest.fields]
    return files + [file["path"] for file in manifest.audit.get(QUARANTINE, ())]
