"""The kernel of `dropout_masks.kept_units` for a GPU: one thread a hash, four units each."""

# Shapes: B impressions, T towers.

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.hashing import GOLDEN, MULTIPLIERS

_BLOCK = 1024
_UNITS_A_HASH = 4


def draw_on_gpu(impression_id_B: Tensor, tower_keys: Tensor, width: int, first_kept: int) -> Tensor:
    """Draw bool [T, B, width]."""
    num_rows, num_towers = len(impression_id_B), len(tower_keys)
    kept = torch.empty((num_towers, num_rows, width), dtype=torch.bool, device=impression_id_B.device)
    num_hashes = -(-width // _UNITS_A_HASH)
    grid = (triton.cdiv(max(1, num_rows * num_hashes), _BLOCK), num_towers)
    _draw_kernel[grid](
        impression_id_B, tower_keys, kept.view(torch.uint8), num_rows, num_hashes, width, first_kept,
        GOLDEN, *MULTIPLIERS, _BLOCK,
    )  # fmt: skip
    return kept


@triton.jit
def _mix_bits(x, first_multiplier: tl.constexpr, second_multiplier: tl.constexpr):  # type: ignore[no-untyped-def]
    """Hash uint64 as `pipeline.kernels.hashing.mix` does."""
    x = (x ^ (x >> 30)) * tl.full((), first_multiplier, tl.uint64)
    x = (x ^ (x >> 27)) * tl.full((), second_multiplier, tl.uint64)
    return x ^ (x >> 31)


@triton.jit
def _draw_kernel(  # type: ignore[no-untyped-def]
    id_pointer, key_pointer, kept_pointer, num_rows, num_hashes, width, first_kept,
    golden: tl.constexpr, first_multiplier: tl.constexpr, second_multiplier: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Draw the units of `block` hashes of one tower."""
    tower = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    row, number = place // num_hashes, place % num_hashes
    inside = row < num_rows
    factor = tl.full((), golden, tl.uint64)
    key = tl.load(key_pointer + tower).to(tl.uint64, bitcast=True)
    identity = tl.load(id_pointer + row, mask=inside, other=0).to(tl.uint64, bitcast=True)
    first = _mix_bits(identity * factor + key, first_multiplier, second_multiplier)
    bits = _mix_bits(first + number.to(tl.uint64) * factor, first_multiplier, second_multiplier)
    start = kept_pointer + (tower * num_rows + row) * width + number * 4
    for part in tl.static_range(4):
        is_kept = ((bits >> (16 * part)) & 0xFFFF) >= first_kept
        tl.store(start + part, is_kept.to(tl.uint8), mask=inside & (number * 4 + part < width))
