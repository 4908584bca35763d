"""A data file between its writer and its place in the dataset."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StagedFile:
    """A finished file that no manifest names yet."""

    path: str  # on the host that wrote it; "" once it is uploaded
    bytes: int
    xxh3: str
    name: str = ""  # its final name, relative to the dataset; `Store.seal` sets it
