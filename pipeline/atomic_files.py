"""Files that are whole or not there: atomic replacement, fsync of directories, the checksum of a file, room for one."""

import os
import tempfile
import uuid
from pathlib import Path
from typing import Protocol

import xxhash

_HASH_BLOCK_BYTES = 4 << 20
_PROBE_BYTES = 1 << 16


class Readable(Protocol):
    """A stream of bytes: Python's or pyarrow's."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


def write_whole(path: Path, content: bytes | str, partial: Path | None = None, mode: int | None = None) -> None:
    """Make or replace `path` atomically: write `content` beside it, flush it to disk, and rename it.

    `partial` is where it is written first; it lies on the same file system. Where several processes may write at
    once, give each a name of its own. `mode` is set before the file can be seen. After an OSError `path` is as before.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def partial_of_its_own(path: Path) -> Path:
    """Return a name beside `path` that no other process writes to: for `write_whole` where several may write at once."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def move_whole(partial: Path, path: Path) -> None:
    """Make or replace `path` by the finished file `partial` of the same file system, once its bytes are on the disk."""
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to disk: without this, a loss of power may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def probe_room(folder: Path) -> None:
    """Write a few bytes into a folder and remove them. Raises OSError if it is full, read-only or missing."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as stream:
        stream.write(bytes(_PROBE_BYTES))


def xxh3_of(stream: Readable) -> str:
    """Hash the rest of `stream` by XXH3 (64 bits).

    Return the 16 hex digits by which manifests and checkpoints name a content.
    """
    digest = xxhash.xxh3_64()
    while block := stream.read(_HASH_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
