"""Where a dataset is written: a directory, or a prefix of an object store. How a file comes to be there whole.

A task writes a file below `scratch`, and hands it in under the name that its content gives it. In a directory the driver
renames it there at the commit; to an object store the task itself PUTs it, for there nothing can be renamed and no
object is seen before it is whole. Either way `put` shows a small file whole or not at all.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import fs as pafs

from pipeline.manifest import InputError, open_location

STAGING = "_staging"
_BLOCK_BYTES = 8 << 20


class Store(Protocol):
    """What the commit needs of a place; names are relative to it, with slashes."""

    @property
    def location(self) -> str:
        """As a message names it."""

    def begin(self, run: str) -> None:
        """Prepare for a run. What dead runs left in the way goes."""

    def scratch(self, run: str) -> Path:
        """A directory of this host where files of a run are written before they are handed in."""

    def hand_in(self, staged: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A whole file below `scratch` will be `name`; what `place` needs to make it so."""

    def keep(self, run: str, name: str, content: bytes) -> str:
        """Keep what tasks of one run have to tell each other; the name to `read` it by."""

    def place(self, handed_in: Mapping[str, Any]) -> str:
        """Put a file that was handed in where it belongs, unless it is there already; its name."""

    def settle(self, folders: tuple[str, ...]) -> None:
        """Wait until what was placed in `folders` would outlive a loss of power."""

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None where there is none."""

    def put(self, name: str, content: bytes) -> None:
        """Make or replace a small file at once."""

    def names(self, folder: str) -> list[tuple[str, float]]:
        """(name, seconds since it was written) of every file below `folder`."""

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""

    def clear(self, run: str) -> None:
        """Remove the scratch of a run."""


@dataclass(frozen=True)
class LocalStore:
    """A directory that every worker sees under this path."""

    root: Path

    @property
    def location(self) -> str:
        """The path."""
        return str(self.root)

    def begin(self, run: str) -> None:
        """Make the staging directory of this run the only one, so that tasks of dead runs find theirs gone."""
        with writing(f"out={self.location}"):
            shutil.rmtree(self.root / STAGING, ignore_errors=True)
            self.scratch(run).mkdir(parents=True)

    def scratch(self, run: str) -> Path:
        """Beside the data, so that a rename moves no bytes."""
        return self.root / STAGING / run

    def hand_in(self, staged: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Bring the bytes to the disk; the rename is the driver's, for only it knows which attempt counts."""
        with writing(f"out={self.location}"), open(staged["staged"], "rb") as stream:
            os.fsync(stream.fileno())
        return {**staged, "name": name}

    def keep(self, run: str, name: str, content: bytes) -> str:
        """Beside the staged files."""
        path = self.scratch(run) / name
        with writing(str(path)):
            path.write_bytes(content)
        return path.relative_to(self.root).as_posix()

    def place(self, handed_in: Mapping[str, Any]) -> str:
        """Rename it."""
        name: str = handed_in["name"]
        with writing(f"out={self.location}"):
            (self.root / name).parent.mkdir(exist_ok=True)
            os.replace(handed_in["staged"], self.root / name)
        return name

    def settle(self, folders: tuple[str, ...]) -> None:
        """Bring the renames to the disk."""
        with writing(f"out={self.location}"):
            for path in (self.root, *(self.root / folder for folder in folders)):
                if path.is_dir():
                    _sync_directory(path)

    def read(self, name: str) -> bytes | None:
        """The content, or None."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Write where a sweep would find it, and rename."""
        path = self.root / name
        fresh = self.root / STAGING / _fresh(name)
        with writing(f"out={self.location}"):
            path.parent.mkdir(exist_ok=True)
            fresh.parent.mkdir(exist_ok=True)
            try:
                with fresh.open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(fresh, path)
            except OSError:
                fresh.unlink(missing_ok=True)
                raise
            _sync_directory(path.parent)

    def names(self, folder: str) -> list[tuple[str, float]]:
        """Files and their age by the clock of this host."""
        paths = [path for path in (self.root / folder).rglob("*") if path.is_file()]
        return [(path.relative_to(self.root).as_posix(), time.time() - path.stat().st_mtime) for path in paths]

    def remove(self, name: str) -> None:
        """Unlink it."""
        with writing(f"out={self.location}"):
            (self.root / name).unlink(missing_ok=True)

    def clear(self, run: str) -> None:
        """Remove the directory, and the one of all runs if it was the last."""
        shutil.rmtree(self.scratch(run), ignore_errors=True)
        parent = self.root / STAGING
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


@dataclass(frozen=True)
class ObjectStore:
    """An address that pyarrow opens: s3://bucket/prefix and the like."""

    location: str

    def begin(self, run: str) -> None:
        """Nothing: a prefix needs no making, and where nothing locks it another run's files may be alive."""

    def scratch(self, run: str) -> Path:
        """On this host: in Spark's own scratch space where there is one, which Spark empties when its executor ends."""
        spark_dirs = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
        path = Path(spark_dirs or tempfile.gettempdir()) / f"entirespace-{run}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def hand_in(self, staged: Mapping[str, Any], name: str) -> dict[str, Any]:
        """PUT it under its name. Attempts of one task PUT the same bytes there, in any order."""
        path = Path(staged["staged"])
        filesystem, root = self._open()
        with (
            writing(f"out={self.location}"),
            path.open("rb") as source,
            filesystem.open_output_stream(f"{root}/{name}") as sink,
        ):
            while block := source.read(_BLOCK_BYTES):
                sink.write(block)
        path.unlink()
        return {key: value for key, value in staged.items() if key != "staged"} | {"name": name}

    def keep(self, run: str, name: str, content: bytes) -> str:
        """In the store, for the scratch of one host is not seen by another."""
        place = f"{STAGING}/{run}/{name}"
        self.put(place, content)
        return place

    def place(self, handed_in: Mapping[str, Any]) -> str:
        """It is there."""
        name: str = handed_in["name"]
        return name

    def settle(self, folders: tuple[str, ...]) -> None:
        """An object that was PUT stays."""

    def read(self, name: str) -> bytes | None:
        """The content, or None."""
        filesystem, root = self._open()
        try:
            with reading(self.location), filesystem.open_input_file(f"{root}/{name}") as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """One PUT; on a file system behind an address (HDFS) written beside it and renamed."""
        filesystem, root = self._open()
        with writing(f"out={self.location}"):
            if appears_whole(filesystem):
                with filesystem.open_output_stream(f"{root}/{name}") as sink:
                    sink.write(content)
            else:
                fresh = f"{root}/{STAGING}/{_fresh(name)}"
                filesystem.create_dir(f"{root}/{STAGING}")
                with filesystem.open_output_stream(fresh) as sink:
                    sink.write(content)
                filesystem.move(fresh, f"{root}/{name}")

    def names(self, folder: str) -> list[tuple[str, float]]:
        """Objects and their age, by the store's time of writing and this host's clock."""
        filesystem, root = self._open()
        selector = pafs.FileSelector(f"{root}/{folder}", recursive=True, allow_not_found=True)
        with reading(self.location):
            infos = filesystem.get_file_info(selector)
        return [
            (info.path.removeprefix(f"{root}/"), time.time() - info.mtime_ns / 1e9) for info in infos if info.is_file
        ]

    def remove(self, name: str) -> None:
        """Delete it."""
        filesystem, root = self._open()
        with writing(f"out={self.location}"):
            if filesystem.get_file_info(f"{root}/{name}").is_file:
                filesystem.delete_file(f"{root}/{name}")

    def clear(self, run: str) -> None:
        """Remove this host's scratch, and what the run kept in the store for its other hosts."""
        shutil.rmtree(self.scratch(run), ignore_errors=True)
        for name, _ in self.names(f"{STAGING}/{run}"):
            self.remove(name)

    def _open(self) -> tuple[pafs.FileSystem, str]:
        # pyarrow would make three requests of a small file; put off, the opening and the writing are one PUT.
        query = "?allow_delayed_open=true" if self.location.startswith("s3://") else ""
        with reading(self.location):
            filesystem, root = open_location(f"{self.location}{query}")
        return filesystem, root.rstrip("/")


def store_of(out: str) -> Store:
    """The store at a path or an address; InputError for an address with a query, which only some readers understand."""
    if "://" not in out:
        return LocalStore(Path(out).expanduser().resolve())
    if out.startswith("file://"):
        return LocalStore(Path(open_location(out)[1]).resolve())
    if "?" in out:
        raise InputError(
            f"out={out} has a query; give the plain address, and the endpoint by the environment (AWS_ENDPOINT_URL)."
        )
    open_location(out)
    return ObjectStore(out.rstrip("/"))


def appears_whole(filesystem: pafs.FileSystem) -> bool:
    """Whether a file is seen only when its writing has ended, as objects are."""
    return filesystem.type_name in ("s3", "gcs", "abfs")


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Turn an error of the file system into the sentence about `where`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{where} cannot be written ({reason_of(error)}); {_remedy(where)}") from error


@contextmanager
def reading(location: str) -> Iterator[None]:
    """The same for reading; a missing file stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{location} cannot be read ({reason_of(error)}); {_remedy(location)}") from error


def _fresh(name: str) -> str:
    return f"{name.replace('/', '-')}-{os.getpid()}"


def reason_of(error: BaseException) -> str:
    """What an error of a file system says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _remedy(location: str) -> str:
    if "s3://" in location:
        return "check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID or AWS_PROFILE)."
    if "://" in location:
        return "check the address and its credentials."
    return "make room there, or choose another out."


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
