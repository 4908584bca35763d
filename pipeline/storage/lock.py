"""One job at a time on a dataset: flock in a directory, a conditional PUT on S3, nothing but a warning elsewhere.

The lock is the file `_lock`, which names its holder. A job that dies leaves it behind. A later job on the same host
takes it over; one on another host is refused, because it cannot know whether the holder lives.
"""

import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, writing
from pipeline.file_lock import Holder, LockHeld, exclusive_lock, parse_holder, this_process
from pipeline.object_lock import is_running, s3_client, warn_unlocked
from pipeline.storage.local_store import LocalStore
from pipeline.storage.store import Store
from pipeline.undo import undone_by

LOCK = "_lock"
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")


@contextmanager
def dataset_lock(store: Store) -> Iterator[None]:
    """Hold the lock of a dataset for the length of the block. Raises InputError if another job holds it."""
    if isinstance(store, LocalStore):
        with _locked_directory(store.root):
            yield
    elif client := s3_client(store.location, "out"):
        with _locked_prefix(client, store.location):
            yield
    else:
        yield


@contextmanager
def _locked_directory(out: Path) -> Iterator[None]:
    path = out / LOCK
    with ExitStack() as stack:
        try:
            with writing(f"out={out}"):
                out.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(exclusive_lock(path))
        except LockHeld as error:
            raise InputError(_refusal(str(out), error.holder)) from None
        if not lock.is_exclusive:
            warn_unlocked("out", str(out), "its file system has no locks")
        if holder := lock.holder():
            if not holder.is_here:  # locks of its host may not reach this one
                raise InputError(f"{_refusal(str(out), holder)} If that job is gone, remove {path}.")
            _report_takeover(str(path), holder)
        with undone_by(partial(path.unlink, missing_ok=True)):
            try:
                with writing(f"out={out}"):
                    lock.sign()
                yield
            finally:
                path.unlink(missing_ok=True)


@contextmanager
def _locked_prefix(client: Any, location: str) -> Iterator[None]:
    """Hold the lock by S3's conditional requests; warn about a store that does not know them."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": f"{prefix}/{LOCK}".lstrip("/")}
    # The token tells this lock from another one of the same process and second.
    signature = this_process().to_json()[:-1] + f', "token": "{uuid.uuid4().hex}"}}'.encode()
    path = f"{location}/{LOCK}"
    try:
        client.put_object(**where, Body=signature, IfNoneMatch="*")
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "NotImplemented":
            warn_unlocked("out", location, "this store knows no conditional requests")
            yield
            return
        if code not in _CONFLICTS:
            raise InputError(f"out={location} cannot be locked ({error}).") from error
        _take_over(client, where, signature, location, path)
    except BotoCoreError as error:
        raise InputError(f"out={location} cannot be locked ({error}).") from error

    def release() -> None:
        try:
            if client.get_object(**where)["Body"].read() == signature:
                client.delete_object(**where)
        except (BotoCoreError, ClientError) as error:
            print(f"{path} was not released ({error}); remove it if it is there.", file=sys.stderr, flush=True)

    with undone_by(release):
        try:
            yield
        finally:
            release()


def _take_over(client: Any, where: Mapping[str, str], signature: bytes, location: str, path: str) -> None:
    """Replace the lock of a job of this host that has ended; InputError for any other."""
    from botocore.exceptions import ClientError

    try:
        found = client.get_object(**where)
        content = found["Body"].read()
        if content == signature:  # the store did write it; only its answer was lost, and boto3 asked again
            return
        holder = parse_holder(content)
        if holder is None or not holder.is_here:
            raise InputError(f"{_refusal(location, holder)} If that job is gone, remove {path}.")
        if is_running(holder.pid):
            raise InputError(_refusal(location, holder))
        client.put_object(**where, Body=signature, IfMatch=found["ETag"])
    except ClientError as error:  # it was released, or another job was faster
        raise InputError(f"out={location} is just being taken by another job; run again.") from error
    _report_takeover(path, holder)


def _refusal(location: str, holder: Holder | None) -> str:
    return f"out={location} is being written by {holder or 'another job'}; wait for it or choose another out."


def _report_takeover(path: str, holder: Holder) -> None:
    print(f"taking over {path}: process {holder.pid} ended without releasing it", file=sys.stderr, flush=True)
