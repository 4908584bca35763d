"""The tensors of a checkpoint on disk: safetensors files, written straight from memory, and checked before one is loaded.

A checksum shows what happened to a file by accident. Names, types, shapes and numbers are checked besides, for a file that
somebody made.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import InputError, printable, reason_of
from training.checkpoint.meta import AVERAGE_TOWERS_FILE, TOWERS_FILE, Checkpoint

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bfloat16: "BF16"}
_TABLE_KEY = re.compile(r"([^/]+)/(0|[1-9][0-9]{0,17})/([^/]+)", re.ASCII)
_ROWS_OF_A_BLOCK = 1 << 18


class RowBlock(NamedTuple):
    """Consecutive rows of one part of a table, as one file has them."""

    first_row: int
    num_rows: int
    name: str  # file and key, for messages
    rows: Any  # a slice of safetensors


class SavedTensors:
    """The tensors of a checkpoint, open for reading: of each table its weight and its optimizer's state, and the towers.

    With `average`, those of the average of the weights, which has the same names and no optimizer's state.
    """

    def __init__(self, checkpoint: Checkpoint, average: bool = False) -> None:
        """Open the files and check the names of their tensors.

        Raises InputError for a file that is no safetensors, a name that no run writes, and rows that are there twice or
        not at all.
        """
        assert checkpoint.average or not average
        self.is_average = average
        self._path, self.towers_file = checkpoint.path, AVERAGE_TOWERS_FILE if average else TOWERS_FILE
        self._towers = self._opened(self.towers_file)
        self._tower_names = frozenset(self._towers.keys())
        self._blocks: dict[tuple[str, str], list[RowBlock]] = {}
        for name in checkpoint.files:
            if name not in (TOWERS_FILE, AVERAGE_TOWERS_FILE) and name.startswith("average-") == average:
                self._list_blocks(name)
        for (table, part), blocks in self._blocks.items():
            self._check_rows(f"{table}/{part}", blocks)

    @property
    def tower_names(self) -> frozenset[str]:
        """The names of the replicated tensors: parameters, and adam/<parameter>/<state>."""
        return self._tower_names

    def num_rows(self, table: str, part: str) -> int:
        """Count the saved rows of a part of a table."""
        return sum(block.num_rows for block in self._blocks.get((table, part), []))

    def check_like(self, table: str, part: str, target: Tensor) -> None:
        """Raise InputError unless the saved rows of a part have the type and the columns of `target`."""
        for block in self._blocks.get((table, part), []):
            self._check(f"{table}/{part}", block.rows, (block.num_rows, *target.shape[1:]), target.dtype)

    def blocks(self, table: str, part: str, first_row: int, stop_row: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the saved rows [first_row, stop_row) of a part, in blocks: the number of the first one, and the rows.

        Raises InputError for a number that is not finite.
        """
        for block in self._blocks.get((table, part), []):
            begin, end = max(first_row, block.first_row), min(stop_row, block.first_row + block.num_rows)
            for start in range(begin, end, _ROWS_OF_A_BLOCK):
                stop = min(start + _ROWS_OF_A_BLOCK, end)
                with self._reading(block.name):
                    rows = block.rows[start - block.first_row : stop - block.first_row]
                self._check_finite(rows, block.name)
                yield start, rows

    def has_tower(self, name: str, shape: torch.Size) -> bool:
        """Check that a replicated tensor is there with this shape."""
        return name in self._tower_names and self._towers.get_slice(name).get_shape() == list(shape)

    def tower(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a replicated tensor. Raises InputError unless it is there with this shape and type, and all finite."""
        if name not in self._tower_names:
            raise self._other_shape(name, "is not there", shape, dtype)
        self._check(name, self._towers.get_slice(name), tuple(shape), dtype)
        with self._reading(f"{self.towers_file}: {name}"):
            tensor: Tensor = self._towers.get_tensor(name)
        self._check_finite(tensor, f"{self.towers_file}: {name}")
        return tensor

    def damage(self, what: str) -> InputError:
        """Return the error that says what is wrong with the files."""
        return InputError(
            f"{self._path}: {what}; it is not as it was saved, so use another checkpoint (moved out of the folder, it is "
            "not used again)."
        )

    def _opened(self, name: str) -> Any:
        with self._reading(name):
            return safe_open(self._path / name, framework="pt")

    def _list_blocks(self, name: str) -> None:
        reader = self._opened(name)
        for key in reader.keys():  # noqa: SIM118
            match = _TABLE_KEY.fullmatch(key)
            rows = reader.get_slice(key)
            shape = rows.get_shape()
            if not match or not shape:
                raise self.damage(f"{name} has the tensor {key!r}, and its names are <table>/<first row>/<part>")
            table, first_row, part = match.groups()
            block = RowBlock(int(first_row), shape[0], f"{name}: {key}", rows)
            self._blocks.setdefault((table, part), []).append(block)

    def _check_rows(self, name: str, blocks: list[RowBlock]) -> None:
        """Raise InputError unless the blocks are the rows from 0 on, each once; sort them."""
        blocks.sort()
        next_row = 0
        for block in blocks:
            if block.num_rows and block.first_row != next_row:
                what = "twice" if block.first_row < next_row else "in no file"
                raise self.damage(f"row {min(block.first_row, next_row)} of {name} is {what}")
            next_row += block.num_rows

    def _check(self, name: str, saved: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if saved.get_shape() != list(shape) or saved.get_dtype() != DTYPES[dtype]:
            raise self._other_shape(name, f"is {saved.get_shape()} of {saved.get_dtype()}", shape, dtype)

    def _other_shape(self, name: str, found: str, shape: tuple[int, ...], dtype: torch.dtype) -> InputError:
        return InputError(
            f"{self._path}: {name} {found} and the model's is {list(shape)} of {DTYPES[dtype]}; "
            "the run was trained with other settings, so start a new one (out=…)."
        )

    def _check_finite(self, values: Tensor, name: str) -> None:
        if not torch.isfinite(values).all():
            raise self.damage(f"{name} has a number that is not finite (NaN or infinite)")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise self.damage(f"{name} cannot be read ({printable(reason_of(error))})") from error


def prediction_tensors(checkpoint: Checkpoint) -> SavedTensors:
    """Open the weights that predict: the average of `checkpoint`, or its last weights where it has none."""
    return SavedTensors(checkpoint, average=checkpoint.average is not None)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    """Write a safetensors file straight from the tensors' memory, down to the disk (fsync).

    Returns its size and the halves of its xxh3. The library's own writer copies every table once, and refuses tables that
    share a buffer, as FBGEMM's do.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_64()
    with path.open("wb") as stream:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            stream.write(part)
        for tensor in tensors.values():
            memory = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            digest.update(memory)
            stream.write(memory)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    return [size, *divmod(digest.intdigest(), 1 << 32)]
