"""Which units are dropped depends on seed, step, layer and impression alone, and is the same by numba, torch and triton."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from splitmix64 import GOLDEN, MASK, mix

from training.model.counter_random import stream_key
from training.model.dropout_masks import _mask_by_torch, dropout_mask, kept_units, mask_keys


def test_a_dropout_mask_equals_a_scalar_reference() -> None:
    ids = torch.tensor([5, 2**62 + 1, -3])
    mask = dropout_mask(seed=1, step=9, layer="click/0", impression_id_B=ids, width=6, rate=0.25)
    key = stream_key(1, "dropout/click/0/9")
    for number, impression_id in enumerate(ids.tolist()):
        row = mix((impression_id * GOLDEN + key) & MASK)
        for unit in range(6):
            bits = (mix((row + unit // 4 * GOLDEN) & MASK) >> (16 * (unit % 4))) & 0xFFFF
            assert mask[number, unit].item() == pytest.approx((bits >= 0.25 * 65536) / 0.75)


@pytest.mark.parametrize("width", [1, 4, 5, 33])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99999])
def test_a_dropout_mask_is_the_same_on_every_device(width: int, rate: float) -> None:
    ids = torch.randint(-(1 << 63), (1 << 63) - 1, (50,), generator=torch.Generator().manual_seed(1))
    mask = dropout_mask(3, 8, "click/0", ids, width, rate)
    tower_keys = torch.tensor(mask_keys(3, 8, ["click", "other"], 1)[0])
    of_torch, of_numba = (
        _mask_by_torch(tower_keys, ids, width, round(rate * 65536)),
        kept_units(ids, tower_keys, width, rate),
    )
    assert of_numba.equal(of_torch)
    assert mask.equal(of_torch[0].float() / (1 - rate))
    assert not of_torch[0].equal(of_torch[1]) or rate > 0.9 or width == 1


def test_dropout_keeps_the_mean_and_belongs_to_the_impression() -> None:
    ids = torch.arange(20_000)
    mask = dropout_mask(1, 0, "click/0", ids, 50, 0.5)
    assert mask.mean().item() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(mask[1_000:2_000], dropout_mask(1, 0, "click/0", ids[1_000:2_000], 50, 0.5))
    for other in (
        dropout_mask(1, 1, "click/0", ids, 50, 0.5),
        dropout_mask(1, 0, "click/1", ids, 50, 0.5),
        dropout_mask(2, 0, "click/0", ids, 50, 0.5),
    ):
        assert torch.corrcoef(torch.stack([mask.flatten(), other.flatten()]))[0, 1].abs() < 0.01


BY_TRITON = """
import torch
from training.model.dropout_masks import _mask_by_torch
from training.model.dropout_triton import draw_on_gpu
ids = torch.randint(-(1 << 63), (1 << 63) - 1, (77,), generator=torch.Generator().manual_seed(1))
keys = torch.tensor([5, -7, 1 << 62])
for width in (1, 4, 5, 33):
    for first_kept in (1, 30000, 65535):
        assert draw_on_gpu(ids, keys, width, first_kept).equal(_mask_by_torch(keys, ids, width, first_kept))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch for a CPU comes without triton")
def test_the_kernel_for_a_gpu_draws_the_same_in_tritons_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", BY_TRITON], check=True, env=environment)


FOR_AN_H100 = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from training.model.dropout_triton import GOLDEN, MULTIPLIERS, _draw_kernel
names = _draw_kernel.arg_names
kinds = dict.fromkeys(names, "i32") | {"id_pointer": "*i64", "key_pointer": "*i64", "kept_pointer": "*u8"}
fixed = {"golden": GOLDEN, "first_multiplier": MULTIPLIERS[0], "second_multiplier": MULTIPLIERS[1], "block": 1024}
kinds |= dict.fromkeys(fixed, "constexpr")
values = {(names.index(name),): value for name, value in fixed.items()}
found = triton.compile(ASTSource(_draw_kernel, signature=kinds, constexprs=values), target=GPUTarget("cuda", 90, 32))
assert len(found.asm["cubin"]) > 1000
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch for a CPU comes without triton")
def test_the_kernel_for_a_gpu_compiles_for_one_that_is_not_there(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", FOR_AN_H100], check=True, env=environment)
