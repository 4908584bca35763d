"""Files below an address (s3://bucket/run, hdfs://…): read, listed, removed, and written whole or not at all.

    files = ObjectFiles("s3://bucket/run")
    files.put("config.yaml", content)        one PUT; where files are seen as they grow, a rename
    files.upload(path, "model.pt2")          in parts, which are seen when the last one is there

A request that fails is repeated, with pauses that grow, unless the answer says that it would fail again. Credentials are
those of the environment; an address never has them.
"""

import errno
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

from pyarrow import NativeFile
from pyarrow import fs as pafs

from pipeline.errors import InputError, printable, reason_of
from pipeline.locations import open_location
from pipeline.secrets import STARS, has_credentials, without_assignments, without_secrets

Answer = TypeVar("Answer")
#: Seconds before each further attempt, times 0.5 to 1.5: so ranks that failed together do not come back together.
PAUSES_S = [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0]
_COPIED_BYTES = 8 << 20
_PARTIAL = "_staging"  # as in a dataset, whose sweep takes what dead jobs leave there
#: In the texts of stores: what asking again would not change.
_LASTING = (
    "NO_SUCH_BUCKET", "NO_SUCH_KEY", "NO_SUCH_UPLOAD", "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID",
    "SIGNATURE_DOES_NOT_MATCH", "MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT", "OPTED_OUT", "VALIDATION",
    "HTTP status 400", "HTTP status 401", "HTTP status 403", "HTTP status 404", "HTTP status 501",
)  # fmt: skip
_PASSING_ERRNOS = (errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EIO, errno.EAGAIN)


class StoredFile(NamedTuple):
    """A file below an address."""

    name: str  # relative to it, with slashes
    bytes: int
    mtime_ns: int  # by the store's clock

    @property
    def age_s(self) -> float:
        """Seconds since it was written, by the store's time of writing and this host's clock."""
        return time.time() - self.mtime_ns / 1e9


@dataclass(frozen=True)
class ObjectFiles:
    """The files below `location`. Methods raise OSError for what repeating did not mend, and FileNotFoundError at once."""

    location: str

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        # pyarrow would make three requests of a small file; put off, the opening and the writing are one PUT.
        query = "?allow_delayed_open=true" if self.location.startswith("s3://") else ""
        filesystem, root = open_location(f"{self.location}{query}")
        return filesystem, root.rstrip("/")

    def __getstate__(self) -> dict[str, str]:  # clients of stores do not travel to other processes
        return {"location": self.location}

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if there is none."""
        filesystem, root = self._opened

        def get() -> bytes:
            with filesystem.open_input_file(f"{root}/{name}") as stream:
                content: bytes = stream.read()
                _check_size(len(content), stream)
                return content

        try:
            return self._repeated(get)
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Make or replace a small file: by one PUT, or by a rename where files are seen as they grow."""
        filesystem, root = self._opened

        def write(path: str) -> None:
            with filesystem.open_output_stream(path) as sink:
                sink.write(content)

        self._repeated(lambda: self._whole(f"{root}/{name}", write))

    def upload(self, path: Path, name: str) -> None:
        """Make or replace a file with the content of a local one; it is seen when it is whole."""
        filesystem, root = self._opened

        def write(target: str) -> None:
            with path.open("rb") as source, filesystem.open_output_stream(target) as sink:
                while block := source.read(_COPIED_BYTES):
                    sink.write(block)

        self._repeated(lambda: self._whole(f"{root}/{name}", write))

    def download(self, name: str, path: Path) -> None:
        """Write a file's content to a local path, whose folder is made."""
        filesystem, root = self._opened
        path.parent.mkdir(parents=True, exist_ok=True)

        def get() -> None:
            with filesystem.open_input_file(f"{root}/{name}") as source, path.open("wb") as sink:
                while block := source.read(_COPIED_BYTES):
                    sink.write(block)
                _check_size(sink.tell(), source)

        self._repeated(get)

    def list_files(self, folder: str = "") -> list[StoredFile]:
        """List the files below a folder, at any depth; none where there is no such folder."""
        filesystem, root = self._opened
        selector = pafs.FileSelector(f"{root}/{folder}".rstrip("/"), recursive=True, allow_not_found=True)
        found = self._repeated(lambda: filesystem.get_file_info(selector))
        return [
            StoredFile(one.path.removeprefix(f"{root}/"), one.size, one.mtime_ns)
            for one in found
            if one.is_file and not one.path.endswith("/")
        ]

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        filesystem, root = self._opened
        return bool(self._repeated(lambda: filesystem.get_file_info(f"{root}/{name}")).is_file)

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""
        filesystem, root = self._opened

        def delete() -> None:
            if filesystem.get_file_info(f"{root}/{name}").is_file:
                filesystem.delete_file(f"{root}/{name}")

        try:
            self._repeated(delete)
        except FileNotFoundError:  # another process was faster, or the first answer was lost
            return

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all below it; it may be gone already."""
        filesystem, root = self._opened

        def delete() -> None:
            if filesystem.get_file_info(f"{root}/{name}").type == pafs.FileType.Directory:
                filesystem.delete_dir(f"{root}/{name}")

        try:
            self._repeated(delete)
        except FileNotFoundError:
            return

    def _whole(self, path: str, write: Callable[[str], None]) -> None:
        filesystem, root = self._opened
        if appears_whole(filesystem):
            write(path)
            return
        partial = f"{root}/{_PARTIAL}/{os.urandom(8).hex()}"
        filesystem.create_dir(f"{root}/{_PARTIAL}")
        filesystem.create_dir(path.rpartition("/")[0])
        write(partial)
        filesystem.move(partial, path)

    def _repeated(self, action: Callable[[], Answer]) -> Answer:
        return repeated(action, self.location)


def repeated(action: Callable[[], Answer], where: str) -> Answer:
    """Call `action` until it raises no OSError that may pass; each repetition is told on stderr. Raises the last error."""
    for number, pause_s in enumerate(PAUSES_S, 1):
        try:
            return action()
        except OSError as error:
            if not may_pass(error):
                raise
            said = printable(without_secrets(reason_of(error)))[:300]
            print(f"{where}: {said}; trying again ({number} of {len(PAUSES_S)}).", file=sys.stderr, flush=True)
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    return action()


def may_pass(error: OSError) -> bool:
    """Tell whether a request that ended with `error` may succeed when it is repeated."""
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return False
    if error.errno is not None:  # of this host; the texts of stores have none
        return error.errno in _PASSING_ERRNOS
    return not any(words in str(error) for words in _LASTING)


def _check_size(found: int, source: NativeFile) -> None:
    """Raise OSError, which is repeated, where an answer was shorter than the file."""
    if found != source.size():
        raise OSError(f"the answer has {found} bytes, and the file {source.size()}")


def appears_whole(filesystem: pafs.FileSystem) -> bool:
    """Tell whether a file is visible only once it is whole, as objects are."""
    return filesystem.type_name in ("s3", "gcs", "abfs")


def check_address(key: str, address: str) -> None:
    """Raise InputError, of the setting `key`, for an address with a query or with credentials: it is saved and shown."""
    if has_credentials(address):
        raise InputError(
            f"{key}={without_assignments(address)} has credentials ({STARS}), and addresses are saved; leave them to the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role)."
        )
    if "?" in address:
        raise InputError(
            f"{key}={without_assignments(address)} has a query; give the plain address, and the endpoint by the "
            "environment (AWS_ENDPOINT_URL)."
        )
