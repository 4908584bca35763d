"""One job at a time on a dataset: flock in a directory, a conditional PUT on S3, nothing but a warning elsewhere.

The lock is the file `_lock`, which says who holds it. Whoever dies leaves it behind: a later job on the same host takes
it over, one on another host is refused, for it cannot know.
"""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, writing
from pipeline.storage.local_store import LocalStore
from pipeline.storage.store import Store

LOCK = "_lock"
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Hold the lock of a dataset; InputError where another job has it, a message where a dead one left it."""
    if isinstance(store, LocalStore):
        with _locked_directory(store.root):
            yield
    elif client := _s3_client(store):
        with _locked_prefix(client, store.location):
            yield
    else:
        yield


@contextmanager
def _locked_directory(out: Path) -> Iterator[None]:
    path = out / LOCK
    while True:
        with writing(f"out={out}"):
            out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(_refusal(str(out), _holder(path))) from None
        # The file may have been removed by its last holder between our open and our lock: then lock the new one.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)
    holder = _holder(path)
    if holder and holder.get("host") != socket.gethostname():
        os.close(descriptor)
        raise InputError(f"{_refusal(str(out), holder)} If that job is gone, remove {path}.")
    if holder:
        _say_takeover(str(path), holder)
    try:
        with writing(f"out={out}"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _mine(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def _locked_prefix(client: Any, location: str) -> Iterator[None]:
    """The same by S3's conditional requests; a store that does not know them is said to be unprotected."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": f"{prefix}/{LOCK}".lstrip("/")}
    mine, path = _mine(), f"{location}/{LOCK}"
    try:
        client.put_object(**where, Body=mine, IfNoneMatch="*")
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "NotImplemented":
            _warn(location, "this store knows no conditional requests")
            yield
            return
        if code not in _CONFLICTS:
            raise InputError(f"out={location} cannot be locked ({error}).") from error
        _take_over(client, where, mine, location, path)
    except BotoCoreError as error:
        raise InputError(f"out={location} cannot be locked ({error}).") from error
    try:
        yield
    finally:
        try:
            if client.get_object(**where)["Body"].read() == mine:
                client.delete_object(**where)
        except (BotoCoreError, ClientError) as error:
            print(f"{path} was not released ({error}); remove it if it is there.", file=sys.stderr, flush=True)


def _take_over(client: Any, where: Mapping[str, str], mine: bytes, location: str, path: str) -> None:
    """Replace the lock of a job of this host that is no more; InputError for any other."""
    from botocore.exceptions import ClientError

    try:
        found = client.get_object(**where)
        holder = _parsed(found["Body"].read())
        if holder.get("host") != socket.gethostname():
            raise InputError(f"{_refusal(location, holder)} If that job is gone, remove {path}.")
        if _is_running(holder.get("pid")):
            raise InputError(_refusal(location, holder))
        client.put_object(**where, Body=mine, IfMatch=found["ETag"])
    except ClientError as error:  # it went, or somebody was faster
        raise InputError(f"out={location} is just being taken by another job; run again.") from error
    _say_takeover(path, holder)


def _s3_client(store: Store) -> Any:
    """boto3's client, which knows conditional requests as pyarrow does not; None, and a warning, where there is none."""
    if not store.location.startswith("s3://"):
        _warn(store.location, "only directories and s3:// are")
        return None
    try:
        import boto3
    except ImportError:
        _warn(store.location, "boto3 is not installed; pip install boto3")
        return None
    return boto3.client("s3")


def _warn(location: str, why: str) -> None:
    print(f"out={location} is not locked ({why}): start no second job on it meanwhile.", file=sys.stderr, flush=True)


def _mine() -> bytes:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": now}).encode()


def _holder(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return {}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(text or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_running(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _refusal(location: str, holder: Mapping[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('time')}" if holder else "another job"
    return f"out={location} is being written by {who}; wait for it or choose another out."


def _say_takeover(path: str, holder: Mapping[str, Any]) -> None:
    print(f"taking over {path}: process {holder.get('pid')} ended without releasing it", file=sys.stderr, flush=True)
