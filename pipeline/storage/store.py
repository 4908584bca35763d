"""Where a dataset is written: a directory, or a prefix of an object store. How a file comes to be there whole.

A task writes a file below `scratch`, and hands it in under the name that its content gives it. In a directory the driver
renames it there at the commit; to an object store the task itself PUTs it, for there nothing can be renamed and no
object is seen before it is whole. Either way `put` shows a small file whole or not at all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import InputError
from pipeline.locations import is_address, open_location
from pipeline.storage.local_store import LocalStore
from pipeline.storage.object_store import ObjectStore


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


def store_of(out: str) -> Store:
    """Choose the store for a path or an address; InputError for an address with a query, which only some readers know."""
    if is_address(out) and not out.startswith("file://") and "?" in out:
        raise InputError(
            f"out={out} has a query; give the plain address, and the endpoint by the environment (AWS_ENDPOINT_URL)."
        )
    filesystem, path = open_location(out)
    return LocalStore(Path(path).resolve()) if filesystem.type_name == "local" else ObjectStore(out.rstrip("/"))
