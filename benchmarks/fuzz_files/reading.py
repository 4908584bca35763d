"""What a reader of damaged files gives: its figures in comparable words, or a refusal, or a disagreement.

A reader takes the folder of all files and returns its figures, and the sentences that it printed beside them. It raises
InputError to refuse, and `Disagreement` where its figures are not those of an independent reading.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

Reading = tuple[str, list[str]]  # figures, sentences printed beside them
Reader = Callable[[Path], Reading]


class Disagreement(Exception):
    """A reader's figures are not those of an independent reading of the same file."""


@dataclass(frozen=True)
class Kind:
    """One kind of file, and its readers."""

    name: str
    form: str
    files: str  # a pattern below the folder
    readers: tuple[Reader, ...]
    forge: Callable[[Path, Path], None] | None = None  # make the checksums those of the damaged file
    is_content: bool = False  # another valid content is other data, which the reader compares with a reference itself
    fall_back: Callable[[Path], None] | None = None  # leave what a reader that says so may use instead


def digest_of(value: Any) -> str:
    """Hash tensors, numbers and texts, in whatever dataclasses and dictionaries they stand."""
    digest = xxhash.xxh3_64()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if dataclasses.is_dataclass(value):
            waiting += [getattr(value, entry.name) for entry in dataclasses.fields(value)]
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, torch.Tensor):
            digest.update(np.ascontiguousarray(value.detach().numpy()).tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
