"""Random numbers that are functions of what they are for, not of who draws them or when.

A table's initial values depend on (seed, table, row, column) alone, and a dropout mask on (seed, step, impression,
unit) alone: so neither changes with the number of ranks or the sharding, and a row that a grown vocabulary adds later
gets what it would have had. Both hash a counter with splitmix64's finalizer (Steele et al., OOPSLA 2014), `hashing.mix`.
"""

import sys

import numpy as np
import torch
import xxhash
from torch import Tensor

from pipeline.kernels.hashing import GOLDEN, MULTIPLIERS, mix
from pipeline.kernels.jit import nb

_UNITS_PER_HASH = 4  # 16 bits decide one unit of a dropout mask


def stream_key(seed: int, name: str) -> int:
    """Return a 64-bit key for the stream `name` under `seed`."""
    return xxhash.xxh3_64_intdigest(name.encode(), seed & 0xFFFFFFFFFFFFFFFF)


def uniform_rows(seed: int, table: str, first_row: int, num_rows: int, num_columns: int, bound: float) -> np.ndarray:
    """Return the initial rows [first_row, first_row + num_rows) of `table`: float32, uniform in [-bound, bound).

    Column j of row i is mix(mix(key + i·golden) + j·golden), its upper 24 bits read as a fraction.
    """
    values = np.empty((num_rows, num_columns), np.float32)
    _fill_uniform(np.uint64(stream_key(seed, table)), first_row, np.float32(bound), values)
    return values


@nb.njit(nogil=True, cache=True)
def _fill_uniform(key: np.uint64, first_row: int, bound: np.float32, out_ND: np.ndarray) -> None:
    scale = np.float32(2) * bound * np.float32(2.0**-24)
    for row in range(len(out_ND)):
        first = mix(np.uint64(first_row + row) * np.uint64(GOLDEN) + key)
        out = out_ND[row]
        for column in range(len(out)):
            bits = mix(first + np.uint64(column) * np.uint64(GOLDEN)) >> np.uint64(40)
            out[column] = np.float32(bits) * scale - bound


def _as_int64(number: int) -> int:
    """Return the int64 with the bits of a uint64."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _mix_tensor(counter: Tensor) -> Tensor:
    """Hash int64 as `mix` hashes uint64, on any device. torch shifts in copies of the sign, which are masked away."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        counter = (counter ^ ((counter >> shift) & ((1 << (64 - shift)) - 1))) * _as_int64(multiplier)
    return counter ^ ((counter >> 31) & ((1 << 33) - 1))


def dropout_mask(seed: int, step: int, layer: str, impression_id_B: Tensor, width: int, rate: float) -> Tensor:
    """Draw float32 [B, width]: 0 with probability `rate`, else 1 / (1 - rate).

    Each hash decides four units by 16 bits each, so `rate` is met to 2⁻¹⁶.
    """
    key = stream_key(seed, f"dropout/{layer}/{step}")
    first_kept = round(rate * 65536)
    if impression_id_B.device.type == "cpu" and sys.byteorder == "little":
        mask_BH = np.empty((len(impression_id_B), width), np.float32)
        _fill_mask(np.uint64(key), impression_id_B.numpy().view(np.uint64), first_kept, np.float32(1 - rate), mask_BH)
        return torch.from_numpy(mask_BH)
    return _mask_torch(key, impression_id_B, width, first_kept).float() / (1.0 - rate)


def _mask_torch(key: int, impression_id_B: Tensor, width: int, first_kept: int) -> Tensor:
    """Draw bool [B, width], True for the units that are kept, on any device."""
    num_hashes = -(-width // _UNITS_PER_HASH)
    counter = torch.arange(num_hashes, device=impression_id_B.device) * _as_int64(GOLDEN)
    rows = _mix_tensor(impression_id_B * _as_int64(GOLDEN) + _as_int64(key))
    bits = _mix_tensor(rows[:, None] + counter)
    parts = [(bits >> (16 * part)) & 0xFFFF for part in range(_UNITS_PER_HASH)]
    return torch.stack(parts, dim=2).view(len(impression_id_B), -1)[:, :width] >= first_kept


@nb.njit(nogil=True, cache=True)
def _fill_mask(
    key: np.uint64, impression_id_B: np.ndarray, first_kept: int, share_kept: np.float32, out_BH: np.ndarray
) -> None:
    """Draw the same on a CPU, in one pass: a row's hashes stay in the cache, and are read again as units of 16 bits.

    hashes  |hash 0             |hash 1             | …
    units   |u 0 |u 1 |u 2 |u 3 |u 4 |u 5 |u 6 |u 7 | …
    """
    width = out_BH.shape[1]
    hashes = np.empty((width + _UNITS_PER_HASH - 1) // _UNITS_PER_HASH, np.uint64)
    units = hashes.view(np.uint16)
    kept = np.float32(1.0) / share_kept
    for row in range(len(out_BH)):
        first = mix(impression_id_B[row] * np.uint64(GOLDEN) + key)
        for number in range(len(hashes)):
            hashes[number] = mix(first + np.uint64(number) * np.uint64(GOLDEN))
        out = out_BH[row]
        for unit in range(width):
            out[unit] = kept if units[unit] >= first_kept else np.float32(0.0)
