"""The store of a dataset: a directory, or a prefix of an object store. Every file in it is whole.

    task    writes a file below scratch() ─▶ seal(): its content gives it a name
    driver  install(): gives it that name                    in the commit, for the attempts that count

In a directory, `install` renames. To an object store `seal` uploads: nothing can be renamed there, and no object is
seen before it is whole. Either way `put` shows a small file whole or not at all.
"""

from pathlib import Path
from typing import Protocol

from pipeline.errors import InputError
from pipeline.locations import is_address, open_location
from pipeline.storage.local_store import LocalStore
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.staged_file import StagedFile


class Store(Protocol):
    """A place for a dataset; names are relative to it, with slashes."""

    @property
    def location(self) -> str:
        """The path or address, as messages name it."""

    def begin(self, run: str) -> None:
        """Prepare for a run; remove what dead runs left in the way."""

    def scratch(self, run: str) -> Path:
        """Return a directory of this host where files of a run are written before they are sealed."""

    def seal(self, file: StagedFile, name: str) -> StagedFile:
        """Make a whole file below `scratch` ready to become `name`."""

    def save(self, run: str, name: str, content: bytes) -> str:
        """Save a content for the other tasks of a run; return the name by which `read` finds it."""

    def install(self, file: StagedFile) -> str:
        """Give a sealed file its final name, unless it has it already; return the name."""

    def flush(self, folders: tuple[str, ...]) -> None:
        """Wait until the files installed in `folders` would survive a loss of power."""

    def read(self, name: str) -> bytes | None:
        """Read a small file; None if there is none."""

    def put(self, name: str, content: bytes, mode: int | None = None) -> None:
        """Make or replace a small file atomically."""

    def names(self, folder: str) -> list[tuple[str, float]]:
        """List (name, seconds since it was written) of every file below `folder`."""

    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""

    def clear(self, run: str) -> None:
        """Remove the scratch of a run."""


def store_of(out: str) -> Store:
    """Choose the store for a path or an address.

    Raises InputError for an address with a query, which only some readers understand.
    """
    if is_address(out) and not out.startswith("file://") and "?" in out:
        raise InputError(
            f"out={out} has a query; give the plain address, and the endpoint by the environment (AWS_ENDPOINT_URL)."
        )
    filesystem, path = open_location(out)
    return LocalStore(Path(path).resolve()) if filesystem.type_name == "local" else ObjectStore(out.rstrip("/"))
