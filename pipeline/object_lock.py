"""One job at a time on a prefix of S3: a small object that names its holder, by conditional requests, which boto3 knows.

    with claimed(location, ".lock", key="out") as claim:      raises InputError while another job has it
        claim.check()                                         raises InputError once another job has taken it over

A claim is renewed while its holder lives (`_LEASE_S` / 4); `check` asks the store itself where that failed for a while. A later
job takes over at once from a holder of the same host whose process is gone. Of any other it watches whether the claim is
renewed, and takes over when it is not. No clocks are compared. Other stores than S3, and S3 without boto3, have no claims: a
warning says so.
"""

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.errors import InputError
from pipeline.file_lock import Holder, parse_holder, this_process
from pipeline.undo import undone_by

#: After so long without a renewal a claim may be taken over by another host.
_LEASE_S = 90.0
_NOT_MET = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "404")


class Claim:
    """A claim that this process holds, or none where the store has no conditional requests."""

    def __init__(self, client: Any = None, bucket: str = "", key: str = "", shown: str = "") -> None:
        self._client, self._where, self._shown = client, {"Bucket": bucket, "Key": key}, shown
        self._token, self._beat, self._etag = uuid.uuid4().hex, 0, ""
        self._ends, self._renewing = threading.Event(), threading.Lock()
        self._renewed_s = time.monotonic()
        self.is_lost = False

    def check(self) -> None:
        """Raise InputError where another job has taken over; the store is asked where the last renewal is long ago."""
        if self._client is not None and time.monotonic() - self._renewed_s > _LEASE_S / 2:
            self._renew()
        if self.is_lost:
            raise InputError(
                f"{self._shown} has been taken over by another job, while this one could not renew it for {_LEASE_S:g} s; "
                "this one ends, and has written nothing since."
            )

    def _body(self) -> bytes:
        return this_process().to_json()[:-1] + f', "token": "{self._token}", "renewed": {self._beat}}}'.encode()

    def _take(self, **condition: str) -> bool:
        """PUT this claim under a condition; False where it does not hold. An answer that was lost counts: we read it again."""
        from botocore.exceptions import ClientError

        body = self._body()
        try:
            self._etag = self._client.put_object(**self._where, Body=body, **condition)["ETag"]
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] not in _NOT_MET:
                raise
        found = self._found()
        if found is None or found[0] != body:
            return False
        self._etag = found[1]
        return True

    def _found(self) -> tuple[bytes, str] | None:
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_object(**self._where)
            return found["Body"].read(), found["ETag"]
        except ClientError as error:
            if error.response["Error"]["Code"] not in _NOT_MET:
                raise
            return None

    def _renew_until_end(self) -> None:
        while not self._ends.wait(_LEASE_S / 4) and not self.is_lost:
            self._renew()

    def _renew(self) -> None:
        """Renew the claim, or find that it is lost. A store that does not answer leaves it as it is."""
        from botocore.exceptions import BotoCoreError, ClientError

        with self._renewing:
            if self.is_lost:
                return
            self._beat += 1
            begun_s = time.monotonic()
            with suppress(BotoCoreError, ClientError):  # the store is away: the next renewal may come through
                self.is_lost = not self._take(IfMatch=self._etag)
                self._renewed_s = begun_s

    def _release(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        self._ends.set()
        if self.is_lost:
            return
        try:
            found = self._found()
            if found and self._token.encode() in found[0]:
                self._client.delete_object(**self._where)
        except (BotoCoreError, ClientError) as error:
            print(f"{self._shown} was not released ({error}); remove it if it is there.", file=sys.stderr, flush=True)


@contextmanager
def claimed(location: str, name: str, key: str) -> Iterator[Claim]:
    """Hold the claim `name` of `location`, which the setting `key` names, for the length of the block.

    Raises InputError where another job holds it, or the store cannot be reached.
    """
    client = s3_client(location, key)
    if client is None:
        yield Claim()
        return
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    claim = Claim(client, bucket, f"{prefix}/{name}".lstrip("/"), f"{location}/{name}")
    try:
        if not claim._take(IfNoneMatch="*"):
            _take_over_claim(claim, location, key)
    except ClientError as error:
        if error.response["Error"]["Code"] != "NotImplemented":
            raise InputError(f"{key}={location} cannot be locked ({error}).") from error
        warn_unlocked(key, location, "this store knows no conditional requests")
        yield Claim()
        return
    except BotoCoreError as error:
        raise InputError(f"{key}={location} cannot be locked ({error}).") from error
    threading.Thread(target=claim._renew_until_end, name="claim", daemon=True).start()
    with undone_by(claim._release):
        try:
            yield claim
        finally:
            claim._release()


def _take_over_claim(claim: Claim, location: str, key: str) -> None:
    """Take the claim of a holder that has ended, or of one on another host that renews it no longer."""
    found, watched_s = claim._found(), time.monotonic()
    holder = parse_holder(found[0]) if found else None
    is_told = False
    while found is not None:
        # A process of that number that runs may be another one: a container that is started again has the same names.
        if holder and holder.is_here and not is_running(holder.pid):
            break
        if time.monotonic() - watched_s >= _LEASE_S:
            break
        if not is_told:
            said = f"{location} is claimed by {holder or 'another job'}; taking over unless that renews it in {_LEASE_S:g} s"
            print(said, file=sys.stderr, flush=True)
            is_told = True
        time.sleep(_LEASE_S / 60)
        now = claim._found()
        if now is not None and now[1] != found[1]:
            raise InputError(_refused(location, key, parse_holder(now[0])))
        found = now
    taken = claim._take(IfNoneMatch="*") if found is None else claim._take(IfMatch=found[1])
    if not taken:
        raise InputError(f"{key}={location} is just being taken by another job; run again.")
    if found is not None and holder:
        print(f"taking over {location}: {holder} has ended", file=sys.stderr, flush=True)


def s3_client(location: str, key: str) -> Any:
    """Return boto3's client, which knows conditional requests, unlike pyarrow.

    Return None, with a warning about the setting `key`, without boto3 or off S3.
    """
    if not location.startswith("s3://"):
        warn_unlocked(key, location, "only directories and s3:// are")
        return None
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        warn_unlocked(key, location, "boto3 is not installed; pip install boto3")
        return None
    return boto3.client("s3", config=Config(retries={"max_attempts": 5, "mode": "standard"}))


def warn_unlocked(key: str, location: str, why: str) -> None:
    """Say on stderr that nothing keeps a second job away."""
    print(f"{key}={location} is not locked ({why}): start no second job on it meanwhile.", file=sys.stderr, flush=True)


def is_running(pid: int) -> bool:
    """Tell whether a process of this host is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refused(location: str, key: str, holder: Holder | None) -> str:
    who = holder or f"another job than {os.getpid()} on {socket.gethostname()}"
    return f"{key}={location} is being trained already, by {who}; wait for its end or end it, and run the same command again."
