"""A data file between its writer and its place in the dataset."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StagedFile:
    """A file that is whole, and that no manifest names yet."""

    path: str  # where the host that wrote it has it; "" once it is uploaded
    bytes: int
    xxh3: str
    name: str = ""  # where it goes, relative to the dataset; `Store.seal` sets it
