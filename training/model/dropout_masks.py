"""Dropout masks: each unit is decided by a hash of (seed, step, layer, impression), whatever rank or device draws it.

A hash decides four units, by 16 bits each:

    hash number h of impression b   mix(mix(id_b · golden + key) + h · golden)
    its bits                        |unit 4h|unit 4h + 1|unit 4h + 2|unit 4h + 3|     the lowest first

    CPU                numba, in one pass
    GPU with triton    one kernel (dropout_triton.py)
    else               torch's integer arithmetic
"""

# Shapes: B impressions, H units, L layers, T towers.

import sys
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from pipeline.kernels.hashing import GOLDEN, MULTIPLIERS, mix
from pipeline.kernels.jit import nb
from training.model.counter_random import stream_key

_UNITS_PER_HASH = 4  # 16 bits decide one unit
_STEPS = 1 << 16  # of a rate


def dropout_mask(seed: int, step: int, layer: str, impression_id_B: Tensor, width: int, rate: float) -> Tensor:
    """Draw float32 [B, width]: 0 with probability `rate`, else 1 / (1 - rate). `rate` is met to 2⁻¹⁶."""
    key, first_kept = mask_key(seed, step, layer), round(rate * _STEPS)
    if _is_cpu(impression_id_B):
        mask_BH = np.empty((len(impression_id_B), width), np.float32)
        _fill_mask(np.uint64(key % 2**64), _as_uint64(impression_id_B), first_kept, np.float32(1 - rate), mask_BH)
        return torch.from_numpy(mask_BH)
    tower_keys = torch.full((1,), key, dtype=torch.int64, device=impression_id_B.device)
    return kept_units(impression_id_B, tower_keys, width, rate)[0].float() / (1.0 - rate)


def mask_key(seed: int, step: int, layer: str) -> int:
    """Return the int64 key of the mask of `layer`, which is `<tower>/<number>`, in a training step."""
    return _as_int64(stream_key(seed, f"dropout/{layer}/{step}"))


def mask_keys(seed: int, step: int, towers: Sequence[str], num_layers: int) -> list[list[int]]:
    """Return the keys [L, T] of the masks of several towers."""
    return [[mask_key(seed, step, f"{tower}/{layer}") for tower in towers] for layer in range(num_layers)]


def kept_units(impression_id_B: Tensor, tower_keys: Tensor, width: int, rate: float) -> Tensor:
    """Draw bool [T, B, width]: which units a layer of each tower keeps. One operator."""
    kept: Tensor = _draw_kept(impression_id_B, tower_keys, width, round(rate * _STEPS))
    return kept


@torch.library.custom_op("entirespace::draw_kept", mutates_args=())
def _draw_kept(impression_id_B: Tensor, tower_keys: Tensor, width: int, first_kept: int) -> Tensor:
    if _is_cpu(impression_id_B):
        kept = np.empty((len(tower_keys), len(impression_id_B), width), np.uint8)
        for key, kept_BH in zip(_as_uint64(tower_keys), kept, strict=True):
            _fill_mask(key, _as_uint64(impression_id_B), first_kept, np.float32(1.0), kept_BH)
        return torch.from_numpy(kept).view(torch.bool)
    if impression_id_B.device.type == "cuda" and has_triton():
        from training.model.dropout_triton import draw_on_gpu  # torch for a CPU comes without triton

        return draw_on_gpu(impression_id_B, tower_keys, width, first_kept)
    return _mask_by_torch(tower_keys, impression_id_B, width, first_kept)


@_draw_kept.register_fake
def _(impression_id_B: Tensor, tower_keys: Tensor, width: int, first_kept: int) -> Tensor:
    return impression_id_B.new_empty((tower_keys.shape[0], impression_id_B.shape[0], width), dtype=torch.bool)


def has_triton() -> bool:
    """Tell whether kernels can be compiled for a GPU."""
    return find_spec("triton") is not None


def _is_cpu(impression_id_B: Tensor) -> bool:
    """Tell whether numba's kernel takes them: it reads a hash as four units in memory."""
    return impression_id_B.device.type == "cpu" and sys.byteorder == "little"


def _as_uint64(numbers: Tensor) -> np.ndarray:
    return numbers.numpy().view(np.uint64)


def _as_int64(number: int) -> int:
    """Return the int64 with the bits of a uint64."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _mix_tensor(counter: Tensor) -> Tensor:
    """Hash int64 as `mix` hashes uint64, on any device. torch shifts in copies of the sign, which are masked away."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        counter = (counter ^ ((counter >> shift) & ((1 << (64 - shift)) - 1))) * _as_int64(multiplier)
    return counter ^ ((counter >> 31) & ((1 << 33) - 1))


def _mask_by_torch(tower_keys: Tensor, impression_id_B: Tensor, width: int, first_kept: int) -> Tensor:
    """Draw bool [T, B, width], True for the units that are kept, on any device."""
    num_hashes = -(-width // _UNITS_PER_HASH)
    counter = torch.arange(num_hashes, device=impression_id_B.device) * _as_int64(GOLDEN)
    rows = _mix_tensor(impression_id_B * _as_int64(GOLDEN) + tower_keys[:, None])
    bits = _mix_tensor(rows[:, :, None] + counter)
    parts = [(bits >> (16 * part)) & 0xFFFF for part in range(_UNITS_PER_HASH)]
    return torch.stack(parts, dim=3).flatten(2)[:, :, :width] >= first_kept


@nb.njit(nogil=True, cache=True)
def _fill_mask(
    key: np.uint64, impression_id_B: np.ndarray, first_kept: int, share_kept: np.float32, out_BH: np.ndarray
) -> None:
    """Draw on a CPU, in one pass: a row's hashes stay in the cache, and are read again as units of 16 bits.

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
